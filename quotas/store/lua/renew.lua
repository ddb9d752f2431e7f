-- A living owner's lease of one tag. KEYS: epoch (names the tag), reservation (unused), leases.
-- ARGV: owner, lease_ms, keep_ms. Owners whose lease ran out are forgotten. Reply: {now_ms, 1}.

local leases = leases_of(redis.call('GET', KEYS[3]))
for owner, lives_to in pairs(leases) do
  if lives_to <= now_ms then leases[owner] = nil end
end
leases[ARGV[1]] = now_ms + ARGV[2]
redis.call('SET', KEYS[3], cmsgpack.pack(leases), 'PX', ARGV[3])
return {now_ms, 1}
