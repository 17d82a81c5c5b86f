-- The clips that one rule alone rejected, the longest first: they come back when it is switched off.
--
-- Parameters:
--   rule                only this rule
--   limit               at most so many rows of each rule; default: 20
-- Columns:
--   rule                the only rule that the clip fails
--   clip_id             the clip
--   duration_s          its length
--   uri                 where its source was found
--   start_s             where in the source it begins
SELECT failed_rules[1] AS rule, clips.clip_id, clips.duration_s, sources.uris[1] AS uri, clips.start_s
FROM clips LEFT JOIN sources USING (source_id)
WHERE len(failed_rules) = 1 AND ($rule IS NULL OR failed_rules[1] = $rule)
QUALIFY row_number() OVER (PARTITION BY rule ORDER BY clips.duration_s DESC, clips.clip_id) <= coalesce($limit, 20)
ORDER BY rule, clips.duration_s DESC, clips.clip_id
