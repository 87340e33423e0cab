package learned

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/weft-mesh/weft/envoy"
)

// Store keeps one text for each shard, for all replicas.
type Store interface {
	// Follow calls read for every shard with the text that there is, nil for none, and again each time that it has become another, until
	// ctx ends. Calls come one after the other.
	Follow(ctx context.Context, read func(shard int, text []byte)) error
	// Update replaces a text by what change makes of it; a nil result leaves it alone. When another replica writes at the same time,
	// change is called again with what that one wrote.
	Update(ctx context.Context, shard int, change func(old []byte) []byte) error
}

// Learner is who hands out configuration: xds.Server.
type Learner interface {
	// Learn takes in what a workload has asked for somewhere else, or in a former life.
	Learn(*envoy.Demand)
	// Forget drops what is known of a workload that has no proxies any more.
	Forget(workload string)
}

// Config says where the record is and who needs it. All fields are required.
type Config struct {
	Store   Store
	Learner Learner
	Present func() map[string]bool // the workloads ("namespace/service account") that have a pod now
	Log     *slog.Logger
}

const (
	debounce  = 2 * time.Second  // what is learned in this time is written together
	again     = 30 * time.Second // after a failure
	tick      = 10 * time.Minute // between two looks for who is gone
	seenEvery = 6 * time.Hour    // how exactly it is known when a workload had a pod
	forgetful = 24 * time.Hour   // a workload without a pod for so long is forgotten
	grace     = time.Hour        // nobody is forgotten so soon after the start: a cluster that was off comes back piece by piece
)

// Keeper keeps the record. It is safe for concurrent use.
type Keeper struct {
	config  Config
	now     func() time.Time
	started time.Time
	wake    chan struct{}
	loaded  chan struct{}

	mu     sync.Mutex
	known  map[string]entry
	dirty  [Shards]bool
	read   [Shards]bool
	full   [Shards]bool // somebody was left out of the text, and the log says so
	broken [Shards]bool // the text cannot be read, and the log says so
	failed bool         // the last write did, and the log says so
	stats  Stats
}

// Stats are for metrics.
type Stats struct {
	Workloads int // of which something is known
	Names     int // that they have asked for, together
	Writes    int // of texts, that succeeded
	Failures  int // of writing
}

// New prepares a Keeper; Run makes it work.
func New(c Config) *Keeper {
	k := &Keeper{config: c, now: time.Now, wake: make(chan struct{}, 1), loaded: make(chan struct{}), known: map[string]entry{}}
	k.started = k.now()
	return k
}

// Loaded is closed when all of the record was read once, and the Learner knows it.
func (k *Keeper) Loaded() <-chan struct{} { return k.loaded }

// Stats are those of this moment.
func (k *Keeper) Stats() Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.stats
	s.Workloads = len(k.known)
	for _, e := range k.known {
		s.Names += e.demand.Len()
	}
	return s
}

// Remember takes in that a workload has asked for something new. It does not block.
func (k *Keeper) Remember(d *envoy.Demand) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.merge(d, k.now()) {
		return
	}
	k.dirty[shardOf(d.Workload)] = true
	k.nudge()
}

// merge reports whether d says something new. k.mu is held.
func (k *Keeper) merge(d *envoy.Demand, seen time.Time) bool {
	if !properWorkload(d.Workload) {
		return false
	}
	e, has := k.known[d.Workload]
	larger := d
	if has {
		larger = e.demand.Merge(d)
	}
	grew := !has || larger != e.demand
	if seen.Before(e.seen) {
		seen = e.seen
	}
	k.known[d.Workload] = entry{larger, seen}
	return grew
}

func (k *Keeper) nudge() {
	select {
	case k.wake <- struct{}{}:
	default: // it is awake
	}
}

// Run follows the store and writes until ctx ends; what is not written by then is written in the end.
func (k *Keeper) Run(ctx context.Context) error {
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() {
		if err := k.config.Store.Follow(ctx, k.take); err != nil && ctx.Err() == nil {
			k.config.Log.Warn("the record of what workloads have asked for cannot be read; new pods ask again", "error", err)
		}
	})
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			k.flush(last)
			return nil
		case <-k.wake:
			if due == nil {
				due = time.After(debounce)
			}
		case <-due:
			due = nil
			if !k.flush(ctx) {
				due = time.After(again)
			}
		case <-ticker.C:
			k.sweep()
		}
	}
}

// take reads one shard of the record.
func (k *Keeper) take(shard int, text []byte) {
	entries, err := decode(text)
	k.mu.Lock()
	k.noteBroken(shard, err)
	k.dirty[shard] = k.dirty[shard] || err != nil
	news := k.takeIn(shard, entries)
	for name, e := range k.known { // what this replica knows and the record does not
		if shardOf(name) != shard || k.expired(name, e, nil) {
			continue
		}
		if r, ok := entries[name]; !ok || r.demand.Merge(e.demand) != r.demand {
			k.dirty[shard] = true
		}
	}
	if k.dirty[shard] {
		k.nudge()
	}
	complete := !k.read[shard]
	k.read[shard] = true
	for _, read := range k.read {
		complete = complete && read
	}
	k.mu.Unlock()
	for _, d := range news {
		k.config.Learner.Learn(d)
	}
	if complete {
		close(k.loaded)
	}
}

// takeIn merges what a shard says, and returns what was new in it. k.mu is held.
func (k *Keeper) takeIn(shard int, entries map[string]entry) (news []*envoy.Demand) {
	for name, e := range entries {
		if shardOf(name) != shard {
			continue // somebody renamed a file: the next write drops it
		}
		if _, has := k.known[name]; !has && k.expired(name, e, nil) {
			continue
		}
		if k.merge(e.demand, e.seen) {
			news = append(news, k.known[name].demand)
		}
	}
	return news
}

func (k *Keeper) noteBroken(shard int, err error) {
	if err != nil && !k.broken[shard] {
		k.config.Log.Warn("a part of the record of what workloads have asked for is ignored and written anew", "shard", shard, "error", err)
	}
	k.broken[shard] = err != nil
}

// expired reports whether a workload can be forgotten. present may be nil: then it is taken as one that has no pod.
func (k *Keeper) expired(name string, e entry, present map[string]bool) bool {
	now := k.now()
	return !present[name] && now.Sub(e.seen) > forgetful && now.Sub(k.started) > grace
}

// flush writes what is dirty. It reports whether nothing is left.
func (k *Keeper) flush(ctx context.Context) bool {
	k.mu.Lock()
	dirty := k.dirty
	k.dirty = [Shards]bool{}
	k.mu.Unlock()
	clean := true
	for shard, d := range dirty {
		if !d {
			continue
		}
		err := k.write(ctx, shard)
		k.mu.Lock()
		if err != nil {
			k.dirty[shard] = true
			k.stats.Failures++
			if !k.failed && ctx.Err() == nil {
				k.config.Log.Warn("what workloads have asked for cannot be recorded; trying again and again", "error", err)
				k.failed = true
			}
			clean = false
		}
		k.mu.Unlock()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if clean && k.failed {
		k.config.Log.Info("what workloads have asked for is recorded again")
	}
	k.failed = k.failed && !clean
	return clean
}

// write brings one shard up to date.
func (k *Keeper) write(ctx context.Context, shard int) error {
	present := k.config.Present()
	var news []*envoy.Demand
	err := k.config.Store.Update(ctx, shard, func(old []byte) []byte {
		entries, err := decode(old)
		k.mu.Lock()
		defer k.mu.Unlock()
		k.noteBroken(shard, err)
		news = append(news, k.takeIn(shard, entries)...)
		next := map[string]entry{}
		for name, e := range k.known {
			if shardOf(name) != shard || k.expired(name, e, present) {
				continue
			}
			if k.stale(name, e, present) {
				e.seen = k.now()
				k.known[name] = e
			}
			next[name] = e
		}
		text, dropped := encode(next)
		if dropped > 0 && !k.full[shard] {
			k.config.Log.Warn("the record of what workloads have asked for is full; those that had a pod longest ago are left out", "shard", shard, "workloads", dropped)
		}
		k.full[shard] = dropped > 0
		if string(text) == string(old) || len(next) == 0 && old == nil {
			return nil
		}
		k.stats.Writes++
		return text
	})
	for _, d := range news {
		k.config.Learner.Learn(d)
	}
	return err
}

// stale reports whether it should be noted that the workload has a pod.
func (k *Keeper) stale(name string, e entry, present map[string]bool) bool {
	return present[name] && k.now().Sub(e.seen) > seenEvery
}

// sweep forgets who is gone, and notes who is there.
func (k *Keeper) sweep() {
	present := k.config.Present()
	var gone []string
	k.mu.Lock()
	for name, e := range k.known {
		switch {
		case k.expired(name, e, present):
			delete(k.known, name)
			gone = append(gone, name)
			k.dirty[shardOf(name)] = true
		case k.stale(name, e, present):
			k.dirty[shardOf(name)] = true
		}
	}
	k.mu.Unlock()
	for _, name := range gone {
		k.config.Learner.Forget(name)
	}
	k.nudge()
}
