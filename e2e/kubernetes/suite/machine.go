package main

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// machine shares the processors out. Light work runs two clusters at a time: it waits for pods to come and go, and nothing in it is timed. Scenarios that count
// and time what users see come when all of that is done, one cluster after the other.
type machine struct {
	light, alone *semaphore.Weighted
	left         sync.WaitGroup // light work that is not done
}

func newMachine(clusters int) *machine {
	n := int64(max(1, clusters))
	return &machine{light: semaphore.NewWeighted(2 * n), alone: semaphore.NewWeighted(n)}
}

// slot is a cluster's place on the machine.
type slot struct {
	*machine
	held *semaphore.Weighted
}

// expects is called for all light work before any cluster begins.
func (m *machine) expects(light bool) {
	if light {
		m.left.Add(1)
	}
}

// enter waits for a place; leave gives it back.
func (m *machine) enter(ctx context.Context, light bool) (*slot, error) {
	s := &slot{machine: m}
	if !light {
		return s, s.goOnAlone(ctx)
	}
	if err := m.light.Acquire(ctx, 1); err != nil {
		m.left.Done()
		return s, err
	}
	s.held = m.light
	return s, nil
}

// goOnAlone ends a cluster's light work, if it had any, and waits until it may have the machine for itself.
func (s *slot) goOnAlone(ctx context.Context) error {
	if s.held == s.alone {
		return nil
	}
	s.leave()
	s.left.Wait()
	if err := s.alone.Acquire(ctx, 1); err != nil {
		return err
	}
	s.held = s.alone
	return nil
}

// leave may be called again.
func (s *slot) leave() {
	if s.held == nil {
		return
	}
	s.held.Release(1)
	if s.held == s.light {
		s.left.Done()
	}
	s.held = nil
}
