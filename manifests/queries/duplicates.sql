-- Footage that is there more than once: every copy beside the clip that was kept.
--
-- Parameters:
--   limit               at most so many rows; default: 1000
-- Columns:
--   kept_clip_id        the copy that was kept
--   clip_id             the copy that points to it
--   is_same_source      both come from one file
--   kept_uri            where the kept copy's source was found
--   uri                 where this copy's source was found
--   start_s             where in its source this copy begins
--   duration_s          its length
--   face_height_px      median height of the face, pixels of the source
--   kept_face_height_px the same of the kept copy
SELECT
    kept.clip_id AS kept_clip_id,
    copies.clip_id,
    copies.source_id = kept.source_id AS is_same_source,
    kept_sources.uris[1] AS kept_uri,
    copy_sources.uris[1] AS uri,
    copies.start_s,
    copies.duration_s,
    copies.face_height_median_px AS face_height_px,
    kept.face_height_median_px AS kept_face_height_px
FROM (FROM clips WHERE duplicate_of IS NOT NULL ORDER BY duplicate_of, clip_id LIMIT coalesce($limit, 1000)) AS copies
JOIN clips AS kept ON kept.clip_id = copies.duplicate_of
LEFT JOIN sources AS kept_sources ON kept_sources.source_id = kept.source_id
LEFT JOIN sources AS copy_sources ON copy_sources.source_id = copies.source_id
ORDER BY kept.clip_id, copies.clip_id
