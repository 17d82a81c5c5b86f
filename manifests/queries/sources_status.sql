-- Sources by kind, status and the reason why they could not be used.
--
-- Columns:
--   kind                video or still
--   status              ok or rejected
--   reason              short code when rejected
--   num_sources         how many
--   hours               length of the videos
--   size_bytes          of the files
--   example             where one of them was found
SELECT
    kind,
    status,
    reason,
    count(*) AS num_sources,
    round(coalesce(sum(duration_s), 0) / 3600, 6) AS hours,
    sum(size_bytes)::BIGINT AS size_bytes,
    min(uris[1]) AS example
FROM sources
GROUP BY kind, status, reason
ORDER BY status, num_sources DESC, kind, reason
