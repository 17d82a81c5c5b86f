-- Every source that could not be used, wholly or in part, and why.
--
-- Columns:
--   stage               where it failed: index, scan or crop
--   reason              short code
--   uri                 the file
--   detail              in plain words
--   source_id           its content; NULL: it could not be read
--   attempts            how often it was tried
SELECT 'index' AS stage, reason, uris[1] AS uri, detail, source_id, 1 AS attempts
FROM sources
WHERE status <> 'ok'
UNION ALL
SELECT stage, reason, uri, message, source_id, attempts
FROM failures
ORDER BY stage, reason, uri, detail
