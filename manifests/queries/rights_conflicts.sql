-- Contents of which source lists state different rights in different places: all of it is told, until the lists agree.
--
-- A licence or attribution of such a source is all that are stated, in their order, with "; " between them; its consent
-- is a refusal where one place has one.
--
-- Columns:
--   source_id           the content
--   what                licence, attribution or consent
--   said                what each place has: `URI: text`
--   num_kept            kept clips of the source
WITH places AS (SELECT source_id, unnest(places) AS place FROM sources),
said AS (
    SELECT source_id, place.uri AS uri, what, trim(place.columns[what]) AS said
    FROM places, (SELECT unnest(['licence', 'attribution', 'consent']) AS what)
    WHERE NOT says_nothing(place.columns[what]) AND (what <> 'licence' OR is_stated(place.columns[what]))
),
kept AS (SELECT source_id, count(*) AS num_kept FROM clips WHERE decision = 'keep' GROUP BY source_id)
SELECT source_id, what, list(uri || ': ' || said ORDER BY uri) AS said, coalesce(any_value(num_kept), 0) AS num_kept
FROM said LEFT JOIN kept USING (source_id)
GROUP BY source_id, what
HAVING count(DISTINCT lower(said)) > 1
ORDER BY num_kept DESC, source_id, what
