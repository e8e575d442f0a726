"""Packaging of gaspar."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "gaspar/version.py").read_text())[1]

setup(
    name="gaspar",
    version=VERSION,
    description="Hand CPU-bound work from an event loop to a preforking daemon: CPU work becomes I/O wait",
    long_description=(HERE / "README.rst").read_text(),
    long_description_content_type="text/x-rst",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["gaspar", "gaspar.*"]),
    package_data={"gaspar": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=["eventlet>=0.36", "pyzmq>=25", "psutil>=5.9", "click>=8.1"],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "gevent>=24",
            "uvloop>=0.19",
            "numpy>=1.26",
            "mypy>=1.11",
            "ruff>=0.6",
            "types-psutil",
            "types-Pygments",
            "types-tqdm",
            "prometheus-client>=0.20",
            "rich>=13",
            "watchfiles>=0.21",
            "sphinx>=8.1",
            "furo>=2024.8",
            "flask>=3",
            "fastapi>=0.110",
            "uvicorn>=0.29",
            "gunicorn>=22",
            "pebble>=5",
        ],
        "docs": ["sphinx>=8.1", "furo>=2024.8", "rich>=13"],
        "metrics": ["prometheus-client>=0.20"],
        "top": ["rich>=13"],
        "reload": ["watchfiles>=0.21"],
        "benchmarks": ["matplotlib", "pebble", "mosec", "gunicorn", "rpyc", "zerorpc"],
        "examples": ["pygments>=2.17", "tqdm>=4.66"],
    },
    entry_points={
        "console_scripts": [
            "gaspar-serve=gaspar.cli:serve",
            "gaspar-call=gaspar.call:call",
            "gaspar-top=gaspar.top:top",
        ],
        # named as the module is: who loads it with -p as well has it once
        "pytest11": ["gaspar.pytest_plugin=gaspar.pytest_plugin"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Software Development :: Libraries",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
)
