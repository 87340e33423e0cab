package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Quiet is how long nothing must have happened before a change is acted upon, and Latest how long it may be put off: a network plugin that writes its file in several
// steps is given the first, one that writes all the time gets the second. A file that appears is acted upon at once, because it is usually complete (renamed
// into its place) and each pod that is made until then has to be repaired.
const (
	Quiet  = 10 * time.Millisecond
	Latest = 100 * time.Millisecond
)

// Watch tells when something in one of the directories changed; the first value comes at once. A directory may be missing, be removed and
// come back: then the nearest one above it is watched, and its return is a change. A change that nobody received yet and later ones are one. The
// channel is closed when ctx ends.
func Watch(ctx context.Context, dirs ...string) (<-chan struct{}, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch %q (raise fs.inotify.max_user_instances if this says too many open files): %w", dirs, err)
	}
	changed := make(chan struct{}, 1)
	changed <- struct{}{}
	f := &follower{w: w, dirs: dirs}
	f.attach()
	go func() {
		defer close(changed)
		defer w.Close()
		f.run(ctx, changed)
	}()
	return changed, nil
}

type follower struct {
	w       *fsnotify.Watcher
	dirs    []string
	watched []os.FileInfo // of the directories, nil while missing
}

func (f *follower) run(ctx context.Context, changed chan<- struct{}) {
	var quiet, latest <-chan time.Time
	// inotify is about inodes: it says nothing when something is mounted over a directory.
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-f.w.Errors:
			if !ok {
				return
			}
			quiet = time.After(Quiet) // events were lost: anything may have changed
		case e, ok := <-f.w.Events:
			if !ok {
				return
			}
			if strings.HasPrefix(filepath.Base(e.Name), temporaryPrefix) {
				continue // our own
			}
			f.attach()
			if e.Has(fsnotify.Create) {
				notify(changed)
			}
			quiet = time.After(Quiet)
			if latest == nil {
				latest = time.After(Latest)
			}
		case <-look.C:
			if f.attach() {
				quiet = time.After(Quiet)
			}
		case <-quiet:
			quiet, latest = nil, nil
			notify(changed)
		case <-latest:
			quiet, latest = nil, nil
			notify(changed)
		}
	}
}

// attach watches each directory, or what there is above it, and says whether one of them is another than before.
func (f *follower) attach() (changed bool) {
	if f.watched == nil {
		f.watched = make([]os.FileInfo, len(f.dirs))
	}
	for i, dir := range f.dirs {
		info, err := os.Stat(dir)
		if err != nil {
			info = nil
		}
		same := info == nil && f.watched[i] == nil || info != nil && f.watched[i] != nil && os.SameFile(info, f.watched[i])
		if !same {
			changed = true
		}
		for at := dir; ; at = filepath.Dir(at) {
			if at == dir && !same {
				_ = f.w.Remove(at) // of the directory that had this name
			}
			if f.w.Add(at) == nil {
				if at != dir {
					// It may have come between the look and the watch.
					if _, err := os.Stat(dir); err == nil {
						if f.w.Add(dir) == nil {
							info, _ = os.Stat(dir)
							changed = true
						}
					}
				}
				break
			}
			if at == filepath.Dir(at) {
				break
			}
		}
		f.watched[i] = info
	}
	return changed
}

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
