package main

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestScenariosHaveTheMachineForThemselves: three clusters with little to do and two with everything; one of the latter fails before its scenarios.
func TestScenariosHaveTheMachineForThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(1)
		var mu sync.Mutex
		running := map[string]int{}
		during := func(what string, most int) {
			mu.Lock()
			running[what]++
			if running[what] > most || running["scenarios"] > 0 && running["light"] > 0 {
				t.Errorf("%v run at a time", running)
			}
			mu.Unlock()
			time.Sleep(time.Minute)
			mu.Lock()
			running[what]--
			mu.Unlock()
		}
		began := time.Now()
		var all sync.WaitGroup
		clusters := []string{"brief", "brief", "brief", "full", "full, and broken"}
		for range clusters {
			m.expects(true)
		}
		for _, cluster := range clusters {
			all.Go(func() {
				s, err := m.enter(t.Context(), true)
				if err != nil {
					t.Error(err)
				}
				defer s.leave()
				during("light", 2)
				if cluster == "full" {
					if err := s.goOnAlone(t.Context()); err != nil {
						t.Error(err)
					}
					during("scenarios", 1)
				}
			})
		}
		all.Go(func() { // scenarios that the user chose
			s, err := m.enter(t.Context(), false)
			if err != nil {
				t.Error(err)
			}
			defer s.leave()
			during("scenarios", 1)
		})
		all.Wait()
		if took := time.Since(began); took != 5*time.Minute {
			t.Errorf("took %s, want 3 minutes of light work and 2 of scenarios", took)
		}
	})
}

// TestWhoIsInterruptedKeepsNobodyWaiting: on Ctrl-C, clusters that have no place yet give it up.
func TestWhoIsInterruptedKeepsNobodyWaiting(t *testing.T) {
	m := newMachine(1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		m.expects(true)
	}
	for range 2 {
		if _, err := m.enter(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.enter(ctx, true); !errors.Is(err, context.Canceled) {
		t.Errorf("a third: %v", err)
	}
}
