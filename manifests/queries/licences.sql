-- Under which licences the sources and the kept clips are.
--
-- Columns:
--   licence             as the source list states it; 'unknown' where it states none (NULL in the tables)
--   num_sources         usable sources
--   num_clips           kept clips
--   hours               their length
--   num_frames          their frames
--   num_identities      persons in them
--   share               of the kept hours, 0 to 1
WITH of_sources AS (
    SELECT if(is_stated(licence), licence, 'unknown') AS licence, count(*) AS num_sources
    FROM sources WHERE status = 'ok' GROUP BY ALL
),
of_clips AS (
    SELECT
        if(is_stated(licence), licence, 'unknown') AS licence,
        count(*) AS num_clips,
        coalesce(sum(duration_s), 0) / 3600 AS hours,
        sum(num_frames)::BIGINT AS num_frames,
        count(DISTINCT identity_id) AS num_identities
    FROM clips WHERE decision = 'keep' GROUP BY ALL
)
SELECT
    licence,
    coalesce(num_sources, 0) AS num_sources,
    coalesce(num_clips, 0) AS num_clips,
    round(coalesce(hours, 0), 6) AS hours,
    coalesce(num_frames, 0) AS num_frames,
    coalesce(num_identities, 0) AS num_identities,
    round(coalesce(hours, 0) / nullif(sum(hours) OVER (), 0), 4) AS share
FROM of_sources FULL JOIN of_clips USING (licence)
ORDER BY hours DESC, num_sources DESC, licence
