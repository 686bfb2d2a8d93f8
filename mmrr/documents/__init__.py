"""Documents to page images and text: discovery, rendering, OCR, the grid of visual tokens."""
