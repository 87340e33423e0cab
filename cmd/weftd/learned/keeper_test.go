package learned

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/envoy"
)

// memory is a Store like the API server: optimistic, with news that come a little later.
type memory struct {
	mu     sync.Mutex
	texts  [Shards][]byte
	change chan struct{}
	err    error
	race   func() // called once between a read and its write
	writes int
}

func newMemory() *memory { return &memory{change: make(chan struct{})} }

func (m *memory) Follow(ctx context.Context, read func(int, []byte)) error {
	var before [Shards]string
	for first := true; ; first = false {
		m.mu.Lock()
		texts, change := m.texts, m.change
		m.mu.Unlock()
		for shard, text := range texts {
			if first || string(text) != before[shard] {
				read(shard, text)
				before[shard] = string(text)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-change:
			time.Sleep(10 * time.Millisecond) // in the bubble's time
		}
	}
}

func (m *memory) Update(_ context.Context, shard int, change func([]byte) []byte) error {
	for {
		m.mu.Lock()
		old, err := m.texts[shard], m.err
		m.mu.Unlock()
		if err != nil {
			return err
		}
		text := change(old)
		if text == nil {
			return nil
		}
		if race := m.race; race != nil {
			m.race = nil
			race()
		}
		m.mu.Lock()
		lost := !bytes.Equal(m.texts[shard], old)
		m.mu.Unlock()
		if !lost {
			m.put(shard, text)
			return nil
		}
	}
}

func (m *memory) put(shard int, text []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.texts[shard] = text
	m.writes++
	close(m.change)
	m.change = make(chan struct{})
}

// pupil is a Learner.
type pupil struct {
	mu     sync.Mutex
	knows  map[string]*envoy.Demand
	forgot []string
}

func (p *pupil) Learn(d *envoy.Demand) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.knows == nil {
		p.knows = map[string]*envoy.Demand{}
	}
	p.knows[d.Workload] = d
}

func (p *pupil) Forget(workload string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.knows, workload)
	p.forgot = append(p.forgot, workload)
}

func (p *pupil) names(workload string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.knows[workload]
	if d == nil {
		return nil
	}
	return slices.Concat(d.Names[envoy.VirtualHost], d.Names[envoy.Cluster])
}

type replica struct {
	*Keeper
	pupil *pupil
	log   *bytes.Buffer
	stop  func()
}

// start runs a replica in a synctest bubble.
func start(t *testing.T, store Store, present ...string) *replica {
	t.Helper()
	r := &replica{pupil: &pupil{}, log: &bytes.Buffer{}}
	pods := map[string]bool{}
	for _, p := range present {
		pods[p] = true
	}
	r.Keeper = New(Config{Store: store, Learner: r.pupil, Present: func() map[string]bool { return pods }, Log: slog.New(slog.NewTextHandler(r.log, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	r.stop = func() { cancel(); <-done }
	<-r.Loaded()
	return r
}

func asked(workload string, names ...string) *envoy.Demand {
	return (&envoy.Demand{Workload: workload}).With(envoy.VirtualHost, names...)
}

func TestWhatAWorkloadAskedForIsKnownAfterEverythingRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		first := start(t, store, "shop/cart")
		first.Remember(asked("shop/cart", "80/reviews", "8080/<script>.example"))
		first.Remember(asked("shop/cart", "80/ratings").With(envoy.Cluster, "outbound|3306||mysql.db.svc.cluster.local"))
		first.stop() // at once: what waits for the debounce is written in the end
		second := start(t, store)
		defer second.stop()
		want := []string{"80/ratings", "80/reviews", "8080/<script>.example", "outbound|3306||mysql.db.svc.cluster.local"}
		if got := second.pupil.names("shop/cart"); !slices.Equal(got, want) {
			t.Errorf("after a restart %q is known, want %q", got, want)
		}
		if s := second.Stats(); s.Workloads != 1 || s.Names != 4 || s.Writes != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestReplicasTellEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		a, b := start(t, store, "shop/cart"), start(t, store, "shop/cart")
		defer a.stop()
		defer b.stop()
		a.Remember(asked("shop/cart", "80/reviews"))
		time.Sleep(debounce + time.Second)
		if got := b.pupil.names("shop/cart"); !slices.Equal(got, []string{"80/reviews"}) {
			t.Fatalf("the other replica knows %q", got)
		}
		// Both learn at the same moment, and one write overtakes the other.
		a.Remember(asked("shop/cart", "80/from-a"))
		b.Remember(asked("shop/cart", "80/from-b"))
		time.Sleep(2*debounce + time.Second)
		want := []string{"80/from-a", "80/from-b", "80/reviews"}
		for name, r := range map[string]*replica{"a": a, "b": b} {
			r.mu.Lock()
			got := r.known["shop/cart"].demand.Names[envoy.VirtualHost]
			r.mu.Unlock()
			if !slices.Equal(got, want) {
				t.Errorf("%s knows %q, want %q", name, got, want)
			}
		}
		writes := store.writes
		time.Sleep(time.Hour)
		if store.writes != writes {
			t.Errorf("%d writes although nobody learned anything", store.writes-writes)
		}
	})
}

func TestAWriteThatIsOvertakenLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		a := start(t, store, "shop/cart")
		defer a.stop()
		shard := shardOf("shop/cart")
		other, _ := encode(map[string]entry{"shop/cart": {asked("shop/cart", "80/theirs"), time.Now()}})
		store.race = func() { store.put(shard, other) }
		a.Remember(asked("shop/cart", "80/ours"))
		time.Sleep(debounce + time.Second)
		entries, err := decode(store.texts[shard])
		if err != nil {
			t.Fatal(err)
		}
		if got := entries["shop/cart"].demand.Names[envoy.VirtualHost]; !slices.Equal(got, []string{"80/ours", "80/theirs"}) {
			t.Errorf("recorded: %q", got)
		}
		if got := a.pupil.names("shop/cart"); !slices.Equal(got, []string{"80/ours", "80/theirs"}) {
			t.Errorf("known: %q", got)
		}
	})
}

func TestManyNewNamesAreOneWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		a := start(t, store)
		defer a.stop()
		d := asked("shop/cart")
		for i := range 200 {
			d = d.With(envoy.VirtualHost, fmt.Sprintf("80/host-%d", i))
			a.Remember(d)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(2 * debounce)
		if store.writes != 1 {
			t.Errorf("%d writes", store.writes)
		}
	})
}

func TestABrokenRecordIsIgnoredAndWrittenAnew(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON":       "{",
		"another format": `{"format": 2, "workloads": []}`,
		"other types":    `{"format": 1, "workloads": [{"workload": 1}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemory()
				shard := shardOf("shop/cart")
				store.texts[shard] = []byte(text)
				a := start(t, store, "shop/cart")
				defer a.stop()
				a.Remember(asked("shop/cart", "80/reviews"))
				time.Sleep(2 * debounce)
				entries, err := decode(store.texts[shard])
				if err != nil || entries["shop/cart"].demand == nil {
					t.Errorf("the record is %s, error %v", store.texts[shard], err)
				}
				if n := strings.Count(a.log.String(), "ignored and written anew"); n != 1 {
					t.Errorf("%d warnings:\n%s", n, a.log)
				}
			})
		})
	}
}

func TestWhatCannotBeANameIsLeftOut(t *testing.T) {
	long := strings.Repeat("x", maxLength+1)
	text := fmt.Sprintf(`{"format": 1, "workloads": [
		{"workload": "shop/cart", "seen": "2026-11-21T00:00:00Z", "hosts": ["", "80/b", "80/a", "80/a", %q]},
		{"workload": "../../etc/passwd", "hosts": ["80/a"]}, {"workload": "shop", "hosts": ["80/a"]}, {"workload": "Shop/cart", "hosts": ["80/a"]}, {"workload": "", "hosts": ["80/a"]}]}`, long)
	entries, err := decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if got := sortedKeys(entries); !slices.Equal(got, []string{"shop/cart"}) {
		t.Fatalf("workloads %q", got)
	}
	if got := entries["shop/cart"].demand.Names[envoy.VirtualHost]; !slices.Equal(got, []string{"80/a", "80/b"}) {
		t.Errorf("names %q", got)
	}
}

func TestAnAppThatAsksForEverythingTakesNoRoomFromOthers(t *testing.T) {
	greedy := asked("shop/greedy")
	var names []string
	for n := range 8000 {
		names = append(names, fmt.Sprintf("80/%s-%d.example.com", strings.Repeat("a", 200), n))
	}
	greedy = greedy.With(envoy.VirtualHost, names...)
	text, dropped := encode(map[string]entry{"shop/greedy": {greedy, time.Now()}, "shop/cart": {asked("shop/cart", "80/reviews"), time.Time{}}})
	entries, err := decode(text)
	if err != nil {
		t.Fatal(err)
	}
	if dropped > 0 || entries["shop/cart"].demand == nil {
		t.Errorf("%d dropped; left: %q", dropped, sortedKeys(entries))
	}
	if n := entries["shop/greedy"].demand.Len(); n < 100 || n > 300 {
		t.Errorf("%d names of the greedy one are recorded", n)
	}
}

func TestAShardThatIsFullLeavesOutWhoWasGoneLongest(t *testing.T) {
	entries := map[string]entry{}
	begin := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	for i := range 100 {
		name := fmt.Sprintf("shop/account-%02d", i)
		d := asked(name)
		for n := range 500 {
			d = d.With(envoy.VirtualHost, fmt.Sprintf("80/a-host-with-a-name-of-usual-length-%d.shop", n))
		}
		entries[name] = entry{d, begin.Add(time.Duration(i) * time.Hour)}
	}
	text, dropped := encode(entries)
	if len(text) > maxText+100 {
		t.Errorf("%d bytes", len(text))
	}
	left, err := decode(text)
	if err != nil {
		t.Fatal(err)
	}
	if dropped == 0 || len(left) != 100-dropped {
		t.Fatalf("%d dropped, %d left", dropped, len(left))
	}
	if _, there := left["shop/account-00"]; there {
		t.Error("the one that had a pod longest ago is there")
	}
	if _, there := left["shop/account-99"]; !there {
		t.Error("the one that had a pod last is not there")
	}
	again, _ := encode(left)
	if !bytes.Equal(text, again) {
		t.Error("the same entries give another text")
	}
}

func TestAWorkloadWithoutAPodForADayIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		a, b := start(t, store, "shop/cart"), start(t, store, "shop/cart")
		defer a.stop()
		defer b.stop()
		a.Remember(asked("shop/cart", "80/reviews"))
		a.Remember(asked("shop/gone", "80/reviews"))
		time.Sleep(forgetful - time.Hour)
		if b.pupil.names("shop/gone") == nil {
			t.Error("forgotten before a day has passed")
		}
		time.Sleep(2 * time.Hour)
		for name, r := range map[string]*replica{"a": a, "b": b} {
			if !slices.Equal(r.pupil.forgot, []string{"shop/gone"}) {
				t.Errorf("%s forgot %q", name, r.pupil.forgot)
			}
		}
		entries, err := decode(store.texts[shardOf("shop/gone")])
		if err != nil || entries["shop/gone"].demand != nil {
			t.Errorf("the record still has it; error %v", err)
		}
		time.Sleep(3 * 24 * time.Hour)
		if b.pupil.names("shop/cart") == nil {
			t.Error("a workload with a pod was forgotten")
		}
		if n := a.Stats().Writes + b.Stats().Writes; n > 40 {
			t.Errorf("%d writes in four days for two workloads", n)
		}
	})
}

func TestAClusterThatWasOffForAWeekForgetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		before := start(t, store, "shop/cart")
		before.Remember(asked("shop/cart", "80/reviews"))
		before.stop()
		time.Sleep(7 * 24 * time.Hour)
		pods := map[string]bool{}
		var mu sync.Mutex
		after := &replica{pupil: &pupil{}}
		after.Keeper = New(Config{Store: store, Learner: after.pupil, Log: slog.New(slog.DiscardHandler), Present: func() map[string]bool {
			mu.Lock()
			defer mu.Unlock()
			return map[string]bool{"shop/cart": pods["shop/cart"]}
		}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = after.Run(ctx) }()
		time.Sleep(30 * time.Minute)
		mu.Lock()
		pods["shop/cart"] = true // the node came late
		mu.Unlock()
		time.Sleep(48 * time.Hour)
		if got := after.pupil.names("shop/cart"); !slices.Equal(got, []string{"80/reviews"}) {
			t.Errorf("known: %q", got)
		}
		cancel()
		<-done
	})
}

func TestARecordThatCannotBeWrittenIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		store.err = errors.New("configmaps is forbidden")
		a := start(t, store)
		defer a.stop()
		a.Remember(asked("shop/cart", "80/reviews"))
		time.Sleep(10 * again)
		if n := strings.Count(a.log.String(), "configmaps is forbidden"); n != 1 {
			t.Errorf("%d warnings:\n%s", n, a.log)
		}
		store.mu.Lock()
		store.err = nil
		store.mu.Unlock()
		time.Sleep(again + time.Second)
		if store.texts[shardOf("shop/cart")] == nil || !strings.Contains(a.log.String(), "recorded again") {
			t.Errorf("not written; log:\n%s", a.log)
		}
	})
}

func TestADeletedRecordComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		a := start(t, store)
		defer a.stop()
		a.Remember(asked("shop/cart", "80/reviews"))
		time.Sleep(2 * debounce)
		store.put(shardOf("shop/cart"), nil)
		time.Sleep(2 * debounce)
		if store.texts[shardOf("shop/cart")] == nil {
			t.Error("it stays away")
		}
	})
}

func TestADirectoryIsARecord(t *testing.T) {
	dir := Dir(filepath.Join(t.TempDir(), "learned"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	texts := make(chan string, 2*Shards)
	go func() {
		_ = dir.Follow(ctx, func(shard int, text []byte) {
			if shard == 3 {
				texts <- string(text)
			}
		})
	}()
	receive := func(want string) {
		t.Helper()
		select {
		case got := <-texts:
			if got != want {
				t.Fatalf("read %q, want %q", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("nothing was read, want %q", want)
		}
	}
	receive("")
	var writers sync.WaitGroup
	for range 20 { // as many processes would
		writers.Go(func() {
			if err := dir.Update(ctx, 3, func(old []byte) []byte { return append(old, 'x') }); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	for {
		select {
		case got := <-texts:
			if got != strings.Repeat("x", 20) {
				continue
			}
		case <-time.After(30 * time.Second):
			t.Fatal("the last text never came")
		}
		break
	}
	if err := dir.Update(ctx, 3, func([]byte) []byte { return nil }); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir.path(3)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
}
