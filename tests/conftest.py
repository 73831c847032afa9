import os
import sys
from pathlib import Path

# Two busy processes make OpenMP spin; so their number is fixed.
os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path.insert(0, str(Path(__file__).parent))
