"""What scripts/bench and scripts/plot are made of. Python's standard library only.

records   the records that are measured with, and a compressor for their payloads
kafka     topics made and removed, records produced, at full speed or at a rate
programs  the programs that are measured, each run once: CPU, wall time, peak memory
report    medians, Markdown, CSV, JSON, and what the machine is
curves    each measurement
plot      SVG from the CSV
"""
