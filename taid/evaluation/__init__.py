"""How students are measured: generated responses, scores from 0 to 10, held-out loss, divergence to the teacher."""
