// Tables sort by a column where its head is clicked, or entered from the keyboard: numbers first, then by letters; once more turns the order.
const numberOf = text => {
  const found = text.replaceAll("−", "-").replaceAll(",", "").match(/^[^\w\d-]*(-?\d+(\.\d+)?(e-?\d+)?)/);
  return found ? Number(found[1]) : null;
};

const compare = (a, b) => {
  const [x, y] = [numberOf(a), numberOf(b)];
  if (x !== null && y !== null) return x - y;
  return (x === null) - (y === null) || a.localeCompare(b, undefined, { numeric: true });
};

const sortBy = (head, column) => {
  const down = head.getAttribute("aria-sort") === "ascending";
  const body = head.closest("table").tBodies[0];
  const text = row => row.cells[column].textContent.trim();
  const lines = [...body.rows].sort((a, b) => (down ? -1 : 1) * compare(text(a), text(b)));
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...lines);
};

for (const cell of document.querySelectorAll("article td")) cell.classList.toggle("sentence", cell.textContent.length > 40);

for (const table of document.querySelectorAll("article table")) {
  if (!table.tHead || !table.tBodies.length || table.tBodies[0].rows.length < 2) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.tabIndex = 0;
    head.classList.add("sorts");
    head.addEventListener("click", () => sortBy(head, column));
    head.addEventListener("keydown", event => event.key === "Enter" && sortBy(head, column));
  });
}
