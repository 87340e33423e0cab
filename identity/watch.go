package identity

import (
	"context"
	"fmt"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long a directory must be quiet before it is read again: several
// files are usually replaced one after the other.
const settle = 100 * time.Millisecond

// WatchDir sends after each change of any entry of dir. Watching the directory
// and not the file is what makes kubelet's swap of the ..data symlink visible.
func WatchDir(ctx context.Context, dir string) (<-chan struct{}, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := w.Add(dir); err != nil {
		w.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	out := make(chan struct{}, 1)
	go func() {
		defer w.Close()
		quiet := time.NewTimer(time.Hour)
		quiet.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.Events:
				quiet.Reset(settle)
			case <-w.Errors: // an overflow: events were lost, so look again
				quiet.Reset(settle)
			case <-quiet.C:
				select {
				case out <- struct{}{}:
				default: // a look is already due
				}
			}
		}
	}()
	return out, nil
}
