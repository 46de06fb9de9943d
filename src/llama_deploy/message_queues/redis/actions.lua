-- What the message queue on Redis does in more than one command, so that it happens whole or not at all.
--
-- But for `publish`:
-- KEYS: the stream of a topic, the deadlines of a group in it (a sorted set: entry, and the time from which another member
-- may have it), the bell of the group (a stream that wakes a member that waits), the stream of the topic's dead letters.
-- ARGV: the action, the group, the member, the topic's lifetime without a reader (0: for ever), then what the action wants.
-- Times are milliseconds.

local topic, deadlines, bell, dead_letters = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local action, group, member, lifetime = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local NOBODY = '-'  -- owns the entries that were given back
local PAGE = 256
local actions = {}

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + time[2] / 1000
end

local function record(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

local function is_before(one, other)
  local one_ms, one_seq = one:match('(%d+)-(%d+)')
  local other_ms, other_seq = other:match('(%d+)-(%d+)')
  one_ms, other_ms = tonumber(one_ms), tonumber(other_ms)
  return one_ms < other_ms or (one_ms == other_ms and tonumber(one_seq) < tonumber(other_seq))
end

-- The group `default` is there from the topic's creation.
local function create(stream)
  if redis.call('EXISTS', stream) == 0 then
    redis.call('XGROUP', 'CREATE', stream, 'default', '0', 'MKSTREAM')
  end
end

-- {id, owner, idle, deliveries} of an unsettled entry.
local function find(name, id)
  local found = redis.pcall('XPENDING', topic, name, id, id, 1)
  return not found.err and found[1]
end

-- Settle an entry; delete it if that was the last group to do so.
local function finish(id)
  redis.call('XACK', topic, group, id)
  redis.call('ZREM', deadlines, id)
  local groups = redis.pcall('XINFO', 'GROUPS', topic)
  if groups.err then return end
  if #groups > 1 then
    for _, flat in ipairs(groups) do
      local other = record(flat)
      if other.name ~= group and (is_before(other['last-delivered-id'], id) or find(other.name, id)) then return end
    end
  end
  redis.call('XDEL', topic, id)
end

local function move_to_dead_letters(id)
  local entry = redis.call('XRANGE', topic, id, id)[1]
  if entry then
    create(dead_letters)
    redis.call('XADD', dead_letters, 'MAXLEN', ARGV[6], '*', unpack(entry[2]))
  end
  finish(id)
end

local function give_back(id, at)
  redis.call('XCLAIM', topic, group, NOBODY, 0, id, 'JUSTID')
  redis.call('ZADD', deadlines, at, id)
end

local function ring()
  redis.call('XADD', bell, 'MAXLEN', 16, '*', 'm', '')
end

-- No member waits at the bell under this name any more. The bell may have expired.
local function turn_away(name)
  redis.pcall('XGROUP', 'DELCONSUMER', bell, group, name)
end

-- Give back all that a member holds, and forget it.
local function dismiss(name)
  local held
  repeat
    held = redis.call('XPENDING', topic, group, '-', '+', PAGE, name)
    for _, entry in ipairs(held) do give_back(entry[1], 0) end
    if #held > 0 then ring() end
  until #held < PAGE
  redis.call('XGROUP', 'DELCONSUMER', topic, group, name)
  turn_away(name)
end

-- KEYS: the streams of topics. ARGV: the action, the most entries of each; then for each message the number of its key, and its
-- body. Returns for each message whether there was room.
function actions.publish()
  local most, length, taken = tonumber(ARGV[2]), {}, {}
  for i = 3, #ARGV, 2 do
    local stream = KEYS[tonumber(ARGV[i])]
    if not length[stream] then
      create(stream)
      length[stream] = redis.call('XLEN', stream)
    end
    if length[stream] < most then
      redis.call('XADD', stream, '*', 'm', ARGV[i + 1])
      length[stream] = length[stream] + 1
      taken[#taken + 1] = 1
    else
      taken[#taken + 1] = 0
    end
  end
  return taken
end

-- ARGV: where the group begins, how long members may be idle.
function actions.join()
  local start, max_idle = ARGV[5], tonumber(ARGV[6])
  create(topic)
  if group ~= 'default' then redis.pcall('XGROUP', 'CREATE', topic, group, start) end  -- or it is there
  redis.pcall('XGROUP', 'CREATE', bell, group, '$', 'MKSTREAM')

  local function idle(consumers)
    local found = {}
    for _, flat in ipairs(consumers) do
      local other = record(flat)
      if other.name ~= member and other.idle > max_idle then found[#found + 1] = other end
    end
    return found
  end

  for _, other in ipairs(idle(redis.call('XINFO', 'CONSUMERS', topic, group))) do
    if other.pending == 0 then dismiss(other.name) end
  end
  for _, other in ipairs(idle(redis.pcall('XINFO', 'CONSUMERS', bell, group))) do
    turn_away(other.name)
  end
end

-- ARGV: the most deliveries, the most dead letters, the most entries, visibility timeout.
-- Returns how long nothing else is due, how many entries became dead letters, and {id, deliveries, body} of each entry.
function actions.claim()
  local most_deliveries, room, visibility = tonumber(ARGV[5]), tonumber(ARGV[7]), tonumber(ARGV[8])
  local at, ids, claimed, dead = now(), {}, {}, 0
  for _, rung in ipairs(redis.call('XPENDING', bell, group, '-', '+', 16)) do redis.call('XACK', bell, group, rung[1]) end

  local due = redis.call('ZRANGEBYSCORE', deadlines, 0, at, 'LIMIT', 0, room + PAGE)
  for _, id in ipairs(due) do ids[#ids + 1] = id end
  local from, page = '-', nil
  repeat
    page = redis.call('XPENDING', topic, group, 'IDLE', visibility, from, '+', PAGE)
    for _, entry in ipairs(page) do
      if not redis.call('ZSCORE', deadlines, entry[1]) then ids[#ids + 1] = entry[1] end
      from = '(' .. entry[1]
    end
  until #page < PAGE or #ids > room
  table.sort(ids, is_before)

  local rest = 0
  for _, id in ipairs(ids) do
    local entry = find(group, id)
    if not entry then
      redis.call('ZREM', deadlines, id)
    elseif entry[4] >= most_deliveries then
      move_to_dead_letters(id)
      dead = dead + 1
    elseif #claimed == room then
      rest = rest + 1
    else
      local found = redis.call('XCLAIM', topic, group, member, 0, id)[1]
      redis.call('ZREM', deadlines, id)
      if found then claimed[#claimed + 1] = {id, entry[4] + 1, record(found[2]).m or ''} else finish(id) end  -- was trimmed away
    end
  end
  if rest > 0 then return {0, dead, claimed} end

  local wait = visibility
  local later = redis.call('ZRANGEBYSCORE', deadlines, string.format('(%.3f', at), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if later[2] then wait = math.min(wait, later[2] - at) end
  for _, entry in ipairs(redis.call('XPENDING', topic, group, '-', '+', PAGE)) do
    if entry[3] < visibility then wait = math.min(wait, visibility - entry[3]) end
  end
  return {math.ceil(wait), dead, claimed}
end

-- ARGV: the most deliveries, the most dead letters; then for each delivery what is to become of it, its entry, its
-- number, and for how long. Only an ack may come from who lost the entry to another: the work is done.
-- Returns how many entries became dead letters.
function actions.settle()
  local at, dead, returned = now(), 0, false
  for i = 7, #ARGV, 4 do
    local wish, id, delivery, duration = unpack(ARGV, i, i + 3)
    local entry = wish ~= 'ack' and find(group, id)
    if wish == 'ack' then
      finish(id)
    elseif entry and entry[2] == member and entry[4] == tonumber(delivery) then
      if wish == 'extend' then
        redis.call('XCLAIM', topic, group, member, 0, id, 'JUSTID')
        redis.call('ZADD', deadlines, at + duration, id)
      elseif wish == 'reject' or entry[4] >= tonumber(ARGV[5]) then
        move_to_dead_letters(id)
        dead = dead + 1
      else
        give_back(id, at + duration)
        returned = true
      end
    end
  end
  if returned then ring() end
  return dead
end

function actions.leave()
  if redis.call('EXISTS', topic) == 1 then dismiss(member) end
end

local answer = actions[action]()
if action ~= 'publish' and lifetime > 0 then
  for _, key in ipairs({topic, deadlines, bell}) do redis.call('PEXPIRE', key, lifetime) end
end
return answer
