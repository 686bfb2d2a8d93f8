"""Write the sample PDFs of `data/sample/`. The same library versions give the same bytes in every run.

    python data/make_sample.py [FOLDER]

The script needs reportlab, Pillow and pypdfium2. Each document is one module in `sample_documents/`.
"""

import sys
from pathlib import Path

from sample_documents import (
    council_minutes,
    espresso_manual,
    ferry_report,
    graduate_handbook,
    islands_brochure,
    lab_prices,
    moss_paper,
    newspaper,
)

DOCUMENTS = {
    "council-minutes-1974.pdf": council_minutes.build,
    "espresso-manual.pdf": espresso_manual.build,
    "ferry-annual-report.pdf": ferry_report.build,
    "graduate-handbook.pdf": graduate_handbook.build,
    "islands-brochure.pdf": islands_brochure.build,
    "laboratory-price-list.pdf": lab_prices.build,
    "moss-growth-paper.pdf": moss_paper.build,
    "town-newspaper.pdf": newspaper.build,
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "sample"
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in DOCUMENTS.items():
        build(folder / name)
        print(f"{name}: {(folder / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
