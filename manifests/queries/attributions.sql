-- Whom to name: the attributions of the sources that kept clips come from.
--
-- Parameters:
--   split               only clips of this split
-- Columns:
--   licence             as the source list states it; NULL where it states none
--   attribution         likewise
--   num_sources         sources with kept clips
--   num_clips           kept clips
--   hours               their length
SELECT
    if(is_stated(clips.licence), clips.licence, NULL) AS licence,
    if(says_nothing(clips.attribution), NULL, clips.attribution) AS attribution,
    count(DISTINCT source_id) AS num_sources,
    count(*) AS num_clips,
    round(coalesce(sum(duration_s), 0) / 3600, 6) AS hours
FROM clips
WHERE decision = 'keep' AND ($split IS NULL OR split = $split)
GROUP BY 1, 2
ORDER BY hours DESC, num_clips DESC, 1, 2
