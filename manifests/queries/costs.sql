-- What the work of index, scan and crop took, by stage and hash of its options.
-- Pack keeps no pieces of work: its shards are in `shards`, its units and time, as those of all stages, in `runs`.
--
-- Columns:
--   stage               stage and hash of the options that it reads
--   num_units           pieces of work that are finished
--   worker_hours        time of the workers
--   video_hours         length of what they looked at
--   times_real_time     seconds of video a second of one worker
--   num_frames          frames that they decoded (scan) or cropped (crop)
--   longest_s           longest piece of work
SELECT
    stage,
    count(*) AS num_units,
    round(sum(wall_s) / 3600, 6) AS worker_hours,
    round(sum(video_s) / 3600, 6) AS video_hours,
    round(sum(video_s) / nullif(sum(wall_s), 0), 2) AS times_real_time,
    sum(num_frames)::BIGINT AS num_frames,
    round(max(wall_s), 2) AS longest_s
FROM units
GROUP BY stage
ORDER BY stage
