-- Which face analyser measured the data set, with the licences of its weights.
--
-- Columns:
--   analyser            name
--   part                of the analyser
--   weights             file and SHA-256
--   licence             of the analyser's weights
--   num_tracks          tracks that it followed
WITH used AS (
    SELECT analyser, analyser_licence, analyser_weights, count(*) AS num_tracks FROM tracks GROUP BY ALL
)
SELECT analyser, entry.key AS part, entry.value AS weights, analyser_licence AS licence, num_tracks
FROM used LEFT JOIN LATERAL (SELECT unnest(map_entries(analyser_weights)) AS entry) ON true
ORDER BY analyser, part, weights
