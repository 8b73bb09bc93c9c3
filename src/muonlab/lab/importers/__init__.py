"""Other people's logs as run folders: modded-nanogpt's text logs, W&B and TensorBoard exports, CSV and JSONL. Needs no torch."""

from muonlab.lab.importers.files import read_file
from muonlab.lab.importers.folders import Imported, import_logs
from muonlab.lab.importers.parsed import ParsedRun

__all__ = ["Imported", "ParsedRun", "import_logs", "read_file"]
