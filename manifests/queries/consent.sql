-- What consent the source list states for the people in the kept clips.
--
-- Parameters:
--   split               only clips of this split
-- Columns:
--   consent             as the source list states it; 'unknown' where it says nothing (NULL in the tables)
--   is_stated           false for unknown and for refusals, as "no" or "withdrawn"
--   num_identities      persons with a kept clip of this consent
--   num_sources         sources with kept clips
--   num_clips           kept clips
--   hours               their length
SELECT
    if(says_nothing(clips.consent), 'unknown', clips.consent) AS consent,
    is_stated(clips.consent) AS is_stated,
    count(DISTINCT identity_id) AS num_identities,
    count(DISTINCT source_id) AS num_sources,
    count(*) AS num_clips,
    round(coalesce(sum(duration_s), 0) / 3600, 6) AS hours
FROM clips
WHERE decision = 'keep' AND ($split IS NULL OR split = $split)
GROUP BY 1, 2
ORDER BY num_clips DESC, consent
