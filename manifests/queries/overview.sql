-- The data set in one row.
--
-- Columns:
--   num_sources         distinct contents that were listed
--   num_usable          of those, how many could be read
--   source_hours        length of the usable videos
--   num_clips           candidate clips that were cropped and measured
--   num_kept            of those, how many all rules let pass
--   kept_hours          length of the kept clips
--   num_frames          frames of the kept clips
--   num_stills          kept clips that are stills, of one frame
--   num_identities      persons in the kept clips
--   num_duplicates      clips that show the same footage as a kept clip
--   num_failures        pieces of work that found nothing or failed, in part or as a whole; `failures` may have several rows of one
--   num_forgotten       sources, clips, tracks and faces that were taken out for good
SELECT *
FROM
    (
        SELECT
            count(*) AS num_sources,
            count(*) FILTER (status = 'ok') AS num_usable,
            round(coalesce(sum(duration_s) FILTER (status = 'ok'), 0) / 3600, 6) AS source_hours
        FROM sources
    ),
    (
        SELECT
            count(*) AS num_clips,
            count(*) FILTER (decision = 'keep') AS num_kept,
            round(coalesce(sum(duration_s) FILTER (decision = 'keep'), 0) / 3600, 6) AS kept_hours,
            coalesce(sum(num_frames) FILTER (decision = 'keep'), 0)::BIGINT AS num_frames,
            count(*) FILTER (decision = 'keep' AND kind = 'still') AS num_stills,
            count(DISTINCT identity_id) FILTER (decision = 'keep') AS num_identities,
            count(duplicate_of) AS num_duplicates
        FROM clips
    ),
    (SELECT count(DISTINCT (stage, unit)) AS num_failures FROM failures),
    (SELECT count(*) AS num_forgotten FROM tombstones)
