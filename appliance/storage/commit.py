"""How a backup becomes true: the one place that says in which order things are made durable.

1. The end-of-session label goes behind the data, the last block to the volume.
2. fdatasync of the volume; the name of a new volume was synced into its directory when it was labelled. Volumes
   that the job left before were synced when it left them.
3. One durable catalog transaction: where the job is, the new ends of the volumes, the job's good status.
4. Only then the caller is told that the job is done.

A crash before 3 leaves a job that `Catalog.recover` enters as failed, and on the volume a tail behind the
catalog's end, which the next job cuts off. After 3 everything is on disk. A failed or cancelled job is entered
as such, with what is on its volumes; it never counts as saved.
"""

from __future__ import annotations

import time
from dataclasses import replace

from appliance.errors import MagbayError
from appliance.storage.catalog import Catalog
from appliance.storage.joblog import JobLog
from appliance.storage.model import Job, JobStatus, Outcome
from appliance.storage.output import Tally
from appliance.storage.saved_files import FileWriter
from appliance.storage.sink import SpanningSink
from appliance.volumes.labels import LabelKind, SessionLabel
from appliance.volumes.writer import SessionWriter


class Commit:
    """Ends one job, well or badly."""

    def __init__(
        self, catalog: Catalog, job: Job, log: JobLog, sink: SpanningSink, rows: FileWriter, label: SessionLabel
    ) -> None:
        self._catalog = catalog
        self._job = job
        self._log = log
        self._sink = sink
        self._rows = rows
        self._label = label

    def done(self, writer: SessionWriter, tally: Tally) -> JobStatus:
        """Everything was written: make it true. Gives the status entered. Raises `MagbayError`; then it is not true."""
        status = JobStatus.WARNINGS if self._log.warning_count else JobStatus.DONE
        self._close_session(writer, tally, status)
        stretches, media = self._sink.sync()
        self._rows.flush()
        self._catalog.finish_job(self._job.job_id, self._outcome(status, writer, tally), stretches, media)
        return status

    def cancelled(self, writer: SessionWriter | None, tally: Tally | None) -> JobStatus:
        """The job was cancelled: its session, if begun, is closed as such when the volume still takes it."""
        try:
            if writer and tally:
                self._close_session(writer, tally, JobStatus.CANCELLED)
        except MagbayError as error:
            self._log.info(f"the end of the session could not be written: {error.message}")
        return self.failed(writer, tally, JobStatus.CANCELLED)

    def failed(self, writer: SessionWriter | None, tally: Tally | None, status: JobStatus) -> JobStatus:
        """Enter the job as failed or cancelled, with what of it is durable on its volumes."""
        stretches, media = self._sink.rescue()
        self._rows.flush()
        self._catalog.finish_job(self._job.job_id, self._outcome(status, writer, tally), stretches, media)
        return status

    def _close_session(self, writer: SessionWriter, tally: Tally, status: JobStatus) -> None:
        start, position = self._sink.position
        label = replace(
            self._label,
            time=int(time.time() * 1_000_000),
            job_files=tally.files,
            job_bytes=writer.job_bytes,
            start_address=start,
            end_address=position,
            job_errors=self._log.warning_count,
            job_status=status.value,
        )
        writer.write_label(LabelKind.EOS_LABEL, self._job.job_id, label.pack(LabelKind.EOS_LABEL))
        writer.flush()

    def _outcome(self, status: JobStatus, writer: SessionWriter | None, tally: Tally | None) -> Outcome:
        return Outcome(
            status=status,
            files=tally.files if tally else 0,
            bytes=tally.bytes if tally else 0,
            job_bytes=writer.job_bytes if writer else 0,
            errors=self._log.error_count,
            warnings=self._log.warning_count,
        )
