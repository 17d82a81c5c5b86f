-- What was taken out for good, by request.
--
-- Columns:
--   request             which call of `forget`
--   forgotten_at        UTC
--   asked_by            source, identity, face or where
--   kind                source: a whole content; clip: one face in a part of it; track: all faces in a part; face: anywhere
--   num_tombstones      how many entries keep it out
SELECT request, min(forgotten_at) AS forgotten_at, asked_by, kind, count(*) AS num_tombstones
FROM tombstones
GROUP BY request, asked_by, kind
ORDER BY forgotten_at, request, kind
