"""Records: a folder that shows what some runs reached by a declared rule, and that anybody can verify. Needs no torch."""

from muonlab.lab.records.certify import Certified, certify
from muonlab.lab.records.verify import Verified, verify

__all__ = ["Certified", "Verified", "certify", "verify"]
