-- Who is in the data: every person with clips, the largest first.
--
-- Parameters:
--   split               only persons of this split
--   limit               at most so many rows; default: 50
-- Columns:
--   identity_id         the person
--   split               where the kept clips are; NULL: none was kept
--   num_sources         sources that show the person
--   num_clips           clips of the person
--   num_kept            of those, how many were kept
--   num_frames          frames of the kept clips
--   hours               length of the kept clips
--   draw_share          share of all draws in its split by the clips' weights, 0 to 1; NULL: nothing kept or no weights
SELECT
    identity_id,
    max(split) AS split,
    count(DISTINCT source_id) AS num_sources,
    count(*) AS num_clips,
    count(*) FILTER (decision = 'keep') AS num_kept,
    coalesce(sum(num_frames) FILTER (decision = 'keep'), 0)::BIGINT AS num_frames,
    round(coalesce(sum(duration_s) FILTER (decision = 'keep'), 0) / 3600, 6) AS hours,
    round(sum(weight) / sum(sum(weight)) OVER (PARTITION BY max(split)), 6) AS draw_share
FROM clips
GROUP BY identity_id, CASE WHEN identity_id IS NULL THEN clip_id END
HAVING $split IS NULL OR max(split) = $split
QUALIFY identity_id IS NOT NULL
ORDER BY hours DESC, num_clips DESC, identity_id
LIMIT coalesce($limit, 50)
