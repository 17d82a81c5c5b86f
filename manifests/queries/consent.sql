-- What consent the source list states for the people in the kept clips.
--
-- Parameters:
--   split               only clips of this split
-- Columns:
--   consent             as the source list states it; 'unknown' where it states none (NULL in the tables)
--   num_identities      persons with a kept clip of this consent
--   num_sources         sources with kept clips
--   num_clips           kept clips
--   hours               their length
SELECT
    coalesce(nullif(consent, ''), 'unknown') AS consent,
    count(DISTINCT identity_id) AS num_identities,
    count(DISTINCT source_id) AS num_sources,
    count(*) AS num_clips,
    round(coalesce(sum(duration_s), 0) / 3600, 6) AS hours
FROM clips
WHERE decision = 'keep' AND ($split IS NULL OR split = $split)
GROUP BY ALL
ORDER BY num_clips DESC, consent
