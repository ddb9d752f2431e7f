-- A living owner's lease of one tag. Keys: epoch (names the tag), reservation (unused), leases.
-- Arguments: owner, lease_ms, keep_ms. Owners whose lease ran out are forgotten. Reply: {now_ms, 1}.

local function renew(keys, args)
  begin(keys[1])
  local kept = {}
  for owner, lives_to in pairs(leases_of(call('GET', keys[3]))) do
    if lives_to > now_ms then kept[owner] = lives_to end
  end
  kept[args[1]] = now_ms + args[2]
  call('SET', keys[3], pack(kept), 'PX', args[3])
  return {now_ms, 1}
end
