-- How evenly training sees people: identities grouped by their number of kept clips, without and with weights.
--
-- Parameters:
--   split               only clips of this split; default: train
-- Columns:
--   from_clips          identities with at least so many kept clips, and fewer than twice as many
--   num_identities      persons in the group; a clip without identity is a person of its own
--   num_clips           their kept clips
--   clip_share          of all these clips, 0 to 1: how often the group is drawn without weights
--   draw_share          how often it is drawn with the clips' weights; NULL: there are none
--   weight_min          smallest weight of a clip
--   weight_max          largest
WITH people AS (
    SELECT identity_id, count(*) AS n, sum(weight) AS weight, min(weight) AS low, max(weight) AS high
    FROM clips
    WHERE decision = 'keep' AND split = coalesce($split, 'train')
    GROUP BY identity_id, CASE WHEN identity_id IS NULL THEN clip_id END
)
SELECT
    (2 ** floor(log2(n)))::INTEGER AS from_clips,
    count(*) AS num_identities,
    sum(n)::BIGINT AS num_clips,
    round(sum(n) / sum(sum(n)) OVER (), 4) AS clip_share,
    round(sum(weight) / sum(sum(weight)) OVER (), 4) AS draw_share,
    round(min(low), 4) AS weight_min,
    round(max(high), 4) AS weight_max
FROM people
GROUP BY ALL
ORDER BY from_clips
