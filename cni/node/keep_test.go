package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-mesh/weft/e2e/kit"
)

// keep runs Keep until the test ends.
func (m machine) keep() {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Keep(ctx, func(Report, error) {}) }()
	m.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			m.t.Errorf("keep: %v", err)
		}
	})
}

// chained is what a runtime that looks now would use, and whether our entry is in it as it should be.
func (m machine) chained() (name, problem string) {
	found, err := scan(m.ConfDir)
	if err != nil {
		return "", err.Error()
	}
	c := choose(found, nil)
	if c.network == nil {
		return "", "no network"
	}
	l, err := parseList(c.network.list)
	if err != nil {
		return c.network.name, err.Error()
	}
	return c.network.name, l.entryProblem(m.Plugin.JSON())
}

func (m machine) awaitChain() time.Duration {
	m.t.Helper()
	return kit.Within(m.t, 20*time.Second, func() string { _, p := m.chained(); return p })
}

// reader reads the directory all the time, as a runtime does, and fails the test should it ever see something that cannot be used.
func (m machine) readers(count int) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range count {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				found, err := scan(m.ConfDir)
				for _, f := range found {
					err = errors.Join(err, f.err)
				}
				if err == nil && len(found) == 0 {
					// A file may have been renamed between the listing and the reading; a runtime looks again then.
					if found, err = scan(m.ConfDir); len(found) == 0 {
						err = errors.Join(err, errors.New("there is no configuration at all"))
					}
				}
				if err != nil {
					m.t.Errorf("a reader saw: %v", err)
					return
				}
				time.Sleep(200 * time.Microsecond)
			}
		})
	}
	m.t.Cleanup(func() { close(stop); wg.Wait() })
}

func TestAPrimaryThatRewritesItsFileAHundredTimesIsFollowedEachTime(t *testing.T) {
	for _, own := range []string{"", "00-weft.conflist"} {
		t.Run("own="+own, func(t *testing.T) {
			m := newMachine(t)
			m.OwnList = own
			m.write("10-calico.conflist", calico)
			m.keep()
			m.awaitChain()
			m.readers(2)

			names := []string{"10-calico.conflist", "05-early.conflist", "20-late.conf", "10-calico.conf"}
			random := rand.New(rand.NewPCG(1, 2))
			var took []time.Duration
			for i := range 100 {
				name := names[random.IntN(len(names))]
				text := fmt.Sprintf(`{"name":"n%d","cniVersion":"0.4.0","plugins":[{"type":"ptp","mtu":%d}]}`, i, i)
				if filepath.Ext(name) == ".conf" {
					text = fmt.Sprintf(`{"name":"n%d","cniVersion":"0.4.0","type":"ptp","mtu":%d}`, i, i)
				}
				if name == "05-early.conflist" && random.IntN(2) == 0 {
					// The second network is removed; the first one is there all the time.
					if err := os.Remove(m.conf(name)); err != nil && !os.IsNotExist(err) {
						t.Fatal(err)
					}
				} else {
					m.write(name, text)
				}
				if random.IntN(3) > 0 { // else the next rewrite comes at once
					took = append(took, m.awaitChain())
				}
			}
			took = append(took, m.awaitChain())
			slices.Sort(took)
			t.Logf("%d waits for the repaired chain: median %s, longest %s", len(took), took[len(took)/2], took[len(took)-1])
		})
	}
}

func TestAWriterInPlaceIsNeverOverwritten(t *testing.T) {
	m := newMachine(t)
	m.write("10-n.conflist", calico)
	m.keep()
	m.awaitChain()
	for i := range 50 {
		// As a shell's > does: truncated first, then written in pieces.
		text := fmt.Sprintf(`{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"ptp","mtu":%d}]}`, i)
		f, err := os.Create(m.conf("10-n.conflist"))
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{text[:20], text[20:40], text[40:]} {
			if _, err := f.WriteString(part); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(i%5) * time.Millisecond) // a slow writer is what is tested here
		}
		f.Close()
		want := fmt.Sprintf(`"mtu":%d}`, i)
		kit.Within(t, 20*time.Second, func() string {
			_, problem := m.chained()
			if text, err := os.ReadFile(m.conf("10-n.conflist")); problem == "" && (err != nil || !strings.Contains(string(text), want)) {
				return fmt.Sprintf("the writer's content %s is lost: %s %v", want, text, err)
			}
			return problem
		})
	}
}

func TestTheDirectoryMayComeLateAndBeReplaced(t *testing.T) {
	m := newMachine(t)
	if err := os.RemoveAll(m.ConfDir); err != nil {
		t.Fatal(err)
	}
	m.keep()
	for range 3 {
		if err := os.Mkdir(m.ConfDir, 0o755); err != nil {
			t.Fatal(err)
		}
		m.write("10-calico.conflist", calico)
		t.Logf("chained after %s", m.awaitChain())
		if err := os.RemoveAll(m.ConfDir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTwoNetworksArriveInEitherOrder(t *testing.T) {
	for _, order := range [][]string{{"05-cilium.conflist", "10-flannel.conflist"}, {"10-flannel.conflist", "05-cilium.conflist"}} {
		m := newMachine(t)
		m.keep()
		for _, name := range order {
			m.write(name, flannel)
			m.awaitChain()
		}
		if name, problem := m.chained(); name != "05-cilium.conflist" || problem != "" {
			t.Errorf("%s %s", name, problem)
		}
		// The first one is taken away: the other is chained as well.
		if err := os.Remove(m.conf("05-cilium.conflist")); err != nil {
			t.Fatal(err)
		}
		m.awaitChain()
	}
}

func TestABinaryThatSomebodyRemovesComesBack(t *testing.T) {
	m := newMachine(t)
	m.write("10-flannel.conflist", flannel)
	m.keep()
	path := filepath.Join(m.BinDir, PluginType)
	there := func() string {
		if b, err := os.ReadFile(path); err != nil || string(b) != "version 1" {
			return fmt.Sprintf("%s %v", b, err)
		}
		return ""
	}
	kit.Within(t, 10*time.Second, there)
	for range 3 {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		t.Logf("back after %s", kit.Within(t, 10*time.Second, there))
	}
}

func FuzzAnEntryIsAddedAndTakenBackToTheByte(f *testing.F) {
	for _, text := range []string{flannel, calico, single, broken, `{"plugins":[{"type":"weft-cni"},{"type":"ptp"}],"name":"x","cniVersion":"1.0.0"}`} {
		f.Add([]byte(text))
	}
	n := &Installation{Plugin: Entry{AgentSocket: "/run/weft/agent.sock"}}
	f.Fuzz(func(t *testing.T, text []byte) {
		if l, err := fromConf(text); err == nil {
			text = l
		}
		l, err := parseList(text)
		if err != nil {
			return
		}
		with, err := n.withEntry(text)
		if err != nil {
			return
		}
		w, err := parseList(with)
		if err != nil || w.entryProblem(n.Plugin.JSON()) != "" {
			t.Fatalf("%q became %q: %v", text, with, err)
		}
		without, err := w.without()
		if err != nil {
			t.Fatal(err)
		}
		if l.ours() == 0 && string(without) != string(text) {
			t.Fatalf("%q came back as %q", text, without)
		}
	})
}
