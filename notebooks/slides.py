"""Settings for slides: `jupyter nbconvert --config notebooks/slides.py --to slides
notebooks/*.ipynb`.

The slides fetch reveal.js and three more scripts, so they need a network. To present without one,
fetch these beforehand into a folder beside the repository, and open the page that the last command
writes there:

    npm install --prefix ../slides reveal.js@4 requirejs jquery@2 mathjax@2
    modules=file://$(cd ../slides/node_modules && pwd)
    mathjax="$modules/mathjax/MathJax.js?config=TeX-AMS_CHTML-full,Safe"
    jupyter nbconvert --config notebooks/slides.py --to slides \\
        notebooks/03_freezing_and_transfer_learning.ipynb --output-dir ../slides \\
        --SlidesExporter.reveal_url_prefix=$modules/reveal.js \\
        --SlidesExporter.require_js_url=$modules/requirejs/require.js \\
        --SlidesExporter.jquery_url=$modules/jquery/dist/jquery.min.js \\
        --SlidesExporter.mathjax_url="$mathjax"
"""

import base64
import struct

from nbconvert.preprocessors import Preprocessor


class AsLargeAsFits(Preprocessor):
    """Show every figure as large as a slide of 1280 x 720 has room for below its heading."""

    def preprocess_cell(self, cell, resources, index):
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                header = base64.b64decode(output.data["image/png"][:64])
                width, height = struct.unpack(">II", header[16:24])
                scale = min(1160 / width, 560 / height)
                output.metadata["image/png"] = {
                    "width": round(scale * width),
                    "height": round(scale * height),
                }
        return cell, resources


c = get_config()  # noqa: F821
c.SlidesExporter.preprocessors = [AsLargeAsFits]
c.SlidesExporter.reveal_width, c.SlidesExporter.reveal_height = "1280", "720"
c.SlidesExporter.exclude_input_prompt = c.SlidesExporter.exclude_output_prompt = True
# A figure's code stays in the notebook; a slide shows code only where it is the point.
c.TagRemovePreprocessor.enabled = True
c.TagRemovePreprocessor.remove_input_tags = {"no-code-on-slide"}
