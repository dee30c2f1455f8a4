"""Ids that look like numbers: stock Syft cannot read its own objects back."""

from __future__ import annotations

import subprocess
import sys

import pytest

STORE_AND_READ = """
import sys, uuid
import sqlalchemy as sa
from syft.store.db.schema import UIDTypeDecorator
from syft.types.uid import UID
if sys.argv[1] == "hardened":
    from fl_privacy.datasite import hardening
    hardening.apply()
table = sa.Table("objects", sa.MetaData(), sa.Column("id", UIDTypeDecorator, primary_key=True))
engine = sa.create_engine("sqlite://")
table.metadata.create_all(engine)
with engine.begin() as connection:
    connection.execute(table.insert().values(id=UID(uuid.UUID(sys.argv[2]))))
    print(connection.execute(sa.select(table)).scalar_one().value.hex)
"""


def read_back(kind: str, uid: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", STORE_AND_READ, kind, uid], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("uid", ["1234567890123456789012345678e123", pytest.param("1" * 32, marks=pytest.mark.slow)])
def test_an_id_that_looks_like_a_number_is_read_back(uid: str) -> None:
    assert read_back("hardened", uid).stdout.strip() == uid


@pytest.mark.slow
def test_stock_syft_fails_at_such_an_id() -> None:
    """When this fails, Syft was mended, and the hardening has one thing less to do."""
    assert "'float' object has no attribute 'replace'" in read_back("stock", "1" * 32).stderr
