import os
import sys
from pathlib import Path

# Two busy processes make OpenMP spin; the tests are small and want one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path.insert(0, str(Path(__file__).parent))
