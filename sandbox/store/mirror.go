package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Mirror writes objects to a directory, one JSON file each, for readers that
// take files instead of an API server (weftd --config). A file appears by
// rename, so a reader never sees half of one.
type Mirror struct {
	Dir  string
	Want func(Object) bool // which objects are written
	// Quiet is how long the mirror gathers changes before it writes them.
	Quiet time.Duration
	// Reader owns the files of Secrets, which nobody else may read; 0 for root.
	Reader int
}

// Run writes until ctx ends. The directory is created, and emptied of what a
// former run left in it.
func (m *Mirror) Run(ctx context.Context, s *Store) error {
	if err := m.reset(); err != nil {
		return err
	}
	w := s.Watch(func(e Event) bool { return m.Want(e.Object) || (e.Old != nil && m.Want(e.Old)) })
	defer w.Stop()
	for {
		batch, err := w.Next(ctx)
		if err != nil {
			return nil
		}
		if m.Quiet > 0 {
			// A burst (a Deployment and its pods) becomes one round of writes, and only the last state of each object is written.
			select {
			case <-time.After(m.Quiet):
			case <-ctx.Done():
				return nil
			}
			w.mu.Lock()
			batch = append(batch, w.queue...)
			w.queue = nil
			w.mu.Unlock()
		}
		last := map[Key]Event{}
		for _, e := range batch {
			last[e.Key] = e
		}
		for _, e := range last {
			if err := m.write(e); err != nil {
				return err
			}
		}
	}
}

func (m *Mirror) reset() error {
	if err := os.MkdirAll(m.Dir, 0o755); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(m.Dir, "*.json"))
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return nil
}

func (m *Mirror) path(k Key) string {
	// Resource, namespace and name never contain "_".
	return filepath.Join(m.Dir, strings.Join([]string{k.Resource, k.Namespace, k.Name}, "_")+".json")
}

func (m *Mirror) write(e Event) error {
	path := m.path(e.Key)
	if e.Type == Deleted || !m.Want(e.Object) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	mode := fs.FileMode(0o644)
	if _, secret := e.Object.(*corev1.Secret); secret {
		mode = 0o600
	}
	data, err := json.MarshalIndent(e.Object, "", " ")
	if err != nil {
		return fmt.Errorf("%s: %w", e.Key, err)
	}
	tmp := filepath.Join(m.Dir, "."+filepath.Base(path)+".tmp")
	if err := os.WriteFile(tmp, append(data, '\n'), mode); err != nil {
		return err
	}
	if mode == 0o600 && m.Reader != 0 {
		if err := os.Chown(tmp, m.Reader, m.Reader); err != nil {
			return err
		}
	}
	return os.Rename(tmp, path)
}
