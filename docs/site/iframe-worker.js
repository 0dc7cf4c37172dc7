// Search from disk: a page of file:// may start no worker. This runs a worker's script in a hidden frame instead.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.body.appendChild(Object.assign(document.createElement("iframe"), { hidden: true }));
      const inside = frame.contentWindow;
      const load = source => new Promise((resolve, reject) => {
        const script = inside.document.createElement("script");
        Object.assign(script, { src: source, onload: resolve, onerror: reject });
        inside.document.body.appendChild(script);
      });
      inside.importScripts = (...sources) => sources.reduce((before, one) => before.then(() => load(one)), Promise.resolve());
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }));
      this.ready = load(url);
      this.window = inside;
    }
    postMessage(data) {
      this.ready.then(() => this.window.dispatchEvent(new this.window.MessageEvent("message", { data })));
    }
  };
  window.Worker = window.IFrameWorker;
}
