"""A notebook as a talk: `python notebooks/slides.py 3` writes notebooks/saved/slides/03_*.html.
With --page it is a page to scroll, all code included.

Both need scripts: reveal.js for slides, MathJax for formulas. npm fetches them once, beside the
page, and from then on it works without a network (copy the whole folder to take it along). Without
npm the page loads them from the web whenever it is shown, and this says so. A talk's notes open
with the key S.
"""

import argparse
import base64
import os
import shutil
import struct
import subprocess
from html import escape
from pathlib import Path

from nbconvert import HTMLExporter, SlidesExporter
from nbconvert.preprocessors import Preprocessor
from traitlets.config import Config

NOTEBOOKS = Path(__file__).resolve().parent
FOLDER = NOTEBOOKS / "saved" / "slides"
CONTROLS = "application/vnd.jupyter.widget-view+json"
SCRIPTS = {  # npm's package: (the exporter's setting, the file or folder in that package)
    "reveal.js@4": ("reveal_url_prefix", "reveal.js"),
    "requirejs@2": ("require_js_url", "requirejs/require.js"),
    "jquery@2": ("jquery_url", "jquery/dist/jquery.min.js"),
    "mathjax@2": ("mathjax_url", "mathjax/MathJax.js?config=TeX-AMS_CHTML-full,Safe"),
}


class Figures(Preprocessor):
    """Every figure in the middle, and with its alternative text, which the exporters' own templates
    leave out; on a slide of 1280 x 720 as large as there is room for below its heading. No
    controls, as a notebook has them that was saved in JupyterLab: what is written has no kernel.
    """

    largest = (1160, 560)
    least = 0  # of a figure's width when it is shown, as a share of what its letters need

    def preprocess_cell(self, cell, resources, index):
        outputs = cell.get("outputs", [])
        outputs[:] = [output for output in outputs if CONTROLS not in output.get("data", {})]
        for output in outputs:
            if "image/png" in output.get("data", {}):
                data = output.data.pop("image/png").replace("\n", "")
                width, height = struct.unpack(">II", base64.b64decode(data[:64])[16:24])
                scale = min(self.largest[0] / width, self.largest[1] / height)
                shown = output.get("metadata", {}).get("image/png", {}).get("width", width)
                alt = escape(cell.metadata.get("alt", ""))
                output.data["text/html"] = (
                    '<div style="overflow-x: auto"><img '
                    f'src="data:image/png;base64,{data}" alt="{alt}" '
                    f'width="{scale * width:.0f}" height="{scale * height:.0f}" '
                    'style="display: block; margin: auto; height: auto; '
                    f'max-width: max(100%, {self.least * shown:.0f}px)"></div>'
                )
        return cell, resources


class FiguresOfAPage(Figures):
    """As wide as a page's text at the most. On a phone as wide as the phone; what would be too
    small to read there, as two fields side by side are, is wider, and is moved sideways.
    """

    largest = (900, 900)
    least = 0.62


# What is too tall for its slide shrinks to it; words in tables begin at the left.
FITTING = """
<script>
for (const cell of document.querySelectorAll(".reveal td")) {
  const isNumber = !isNaN(cell.textContent.replace(/[−,%+]/g, ""));
  cell.style.textAlign = isNumber ? "right" : "left";
}
function fit({ currentSlide }) {
  currentSlide.style.zoom = 1;
  currentSlide.style.zoom = Math.min(1, 700 / currentSlide.scrollHeight);
}
const deck = document.querySelector(".reveal");
for (const event of ["ready", "slidechanged"]) deck.addEventListener(event, fit);
</script>
</body>"""


def config(local: bool, page: bool = False) -> Config:
    """The exporter's settings; local: scripts lie in node_modules beside the page."""
    c = Config()
    c.HTMLExporter.preprocessors = [FiguresOfAPage if page else Figures]
    c.HTMLExporter.exclude_input_prompt = c.HTMLExporter.exclude_output_prompt = True
    for setting, place in SCRIPTS.values() if local else ():
        c.SlidesExporter[setting] = f"node_modules/{place}"
        if setting != "reveal_url_prefix":
            c.HTMLExporter[setting] = f"node_modules/{place}"
    if not page:
        c.SlidesExporter.reveal_width, c.SlidesExporter.reveal_height = "1280", "720"
        c.SlidesExporter.reveal_number = "c/t"
        # A figure's code stays in the notebook; a slide shows code only where it is the point.
        c.TagRemovePreprocessor.enabled = True
        c.TagRemovePreprocessor.remove_input_tags = {"no-code-on-slide"}
    return c


def fetch(folder: Path) -> bool:
    """Whether the scripts lie in folder/node_modules; npm fetches those that do not."""
    files = [folder / "node_modules" / place.partition("?")[0] for _, place in SCRIPTS.values()]
    if all(file.exists() for file in files):
        return True
    if not (npm := shutil.which("npm")):
        return False
    done = subprocess.run([npm, "install", "--no-audit", "--no-fund", "--prefix", folder, *SCRIPTS])
    return done.returncode == 0


def written(notebook: Path, folder: Path = FOLDER, page: bool = False) -> Path:
    """Writes an executed notebook into folder, as slides or as a page; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    local = fetch(folder)
    exporter = HTMLExporter if page else SlidesExporter
    body, _ = exporter(config=config(local, page)).from_filename(str(notebook))
    file = folder / f"{notebook.stem}{'_page' if page else ''}.html"
    file.write_text(body if page else body.replace("</body>", FITTING), encoding="utf-8")
    needs = "works without a network" if local else "needs a network to be shown: npm is not there"
    print(f"{os.path.relpath(file)} {needs}")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("number", type=int, nargs="+", choices=range(1, 5), help="1 to 4")
    parser.add_argument("--page", action="store_true", help="a page to scroll, not slides")
    given = parser.parse_args()
    for number in given.number:
        written(next(NOTEBOOKS.glob(f"0{number}_*.ipynb")), page=given.page)


if __name__ == "__main__":
    main()
