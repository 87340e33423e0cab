package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/mesh/manifest"
)

// Change is what became different. Apply and Delete go into one [mesh.Store.Update].
type Change struct {
	Apply  []mesh.Object
	Delete []mesh.Key

	// All that is wrong now, not only what is new: what these files said before stays in force.
	// They are of type [manifest.Errors] or [*manifest.Error].
	Errors   []error
	Warnings []manifest.Warning
}

const (
	// quiet is how long a file must not have been written to before it is read: a program that writes
	// a file in place shows a truncated one for a moment.
	quiet = 10 * time.Millisecond
	// gone is how long a file must be missing or empty before its objects go: editors remove a file
	// before they write it anew.
	gone = 100 * time.Millisecond
	// again is how often a directory is looked for that the caller named and that vanished.
	again = 2 * time.Second
)

// Watch reads files and directories (recursively; see [manifest.Read]) and follows them until ctx ends,
// when the channel is closed. The first Change is everything there is. Objects without a namespace are in
// "default". Files may be replaced by rename, written in place, come and go with their directories, or be
// swapped through Kubernetes' "..data" link.
//
// The error says which path cannot be read or watched at all. Mistakes inside files are in Change.Errors.
func Watch(ctx context.Context, paths ...string) (<-chan Change, error) {
	fsw, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("cannot watch files: %w", err)
	}
	w := &watcher{
		fsw:     fsw,
		set:     newSet(),
		watched: map[string]uint64{},
		due:     map[string]time.Time{},
		missing: map[string]time.Time{},
		stamps:  map[string]stamp{},
	}
	for _, p := range paths {
		if p == "-" {
			objects, warnings, err := manifest.Decode(os.Stdin, "stdin")
			manifest.SetNamespace(objects, "default")
			w.set.read("stdin", objects, warnings, err)
			continue
		}
		p = filepath.Clean(p)
		info, err := os.Stat(p)
		if err != nil {
			fsw.Close()
			return nil, err
		}
		w.roots = append(w.roots, root{p, info.IsDir()})
	}
	for _, r := range w.roots {
		if err := w.follow(filepath.Dir(r.path)); err != nil {
			fsw.Close()
			return nil, err
		}
		if err := w.look(r.path); err != nil {
			fsw.Close()
			return nil, err
		}
	}
	out := make(chan Change)
	go w.run(ctx, out)
	return out, nil
}

// root is a path that the caller named.
type root struct {
	path string
	dir  bool
}

// watcher belongs to one goroutine.
type watcher struct {
	fsw     *fsnotify.Watcher
	roots   []root
	set     set
	watched map[string]uint64    // directories and their inodes
	due     map[string]time.Time // files and directories to look at, and when
	missing map[string]time.Time // since when a file that has objects is missing or empty
	stamps  map[string]stamp     // of the files as last read
	sent    bool                 // the first Change is out
	last    string               // the mistakes and warnings of the last Change
}

// stamp tells whether a file is another than before without reading it.
type stamp struct {
	size  int64
	mod   time.Time
	inode uint64
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size(), mod: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s
}

func (w *watcher) run(ctx context.Context, out chan<- Change) {
	defer close(out)
	defer w.fsw.Close()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	next, ready := w.settle(Change{})
	for {
		send := out
		if !ready {
			send = nil
		}
		var wake <-chan time.Time
		if at, any := w.earliest(); any {
			timer.Reset(max(0, time.Until(at)))
			wake = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case send <- next:
			next, ready, w.sent = Change{}, false, true
		case e, ok := <-w.fsw.Events:
			if !ok {
				return
			}
			w.event(e)
		case err, ok := <-w.fsw.Errors:
			if !ok {
				return
			}
			if errors.Is(err, fsnotify.ErrEventOverflow) { // events are lost: look at everything
				for _, r := range w.roots {
					w.due[r.path] = time.Now()
				}
			}
		case <-wake:
			w.lookAtDue()
			var more bool
			next, more = w.settle(next)
			ready = ready || more
		}
	}
}

func (w *watcher) earliest() (at time.Time, any bool) {
	for _, t := range w.due {
		if !any || t.Before(at) {
			at, any = t, true
		}
	}
	return at, any
}

// event notes what must be looked at.
func (w *watcher) event(e fsnotify.Event) {
	path := filepath.Clean(e.Name)
	dir, base := filepath.Dir(path), filepath.Base(path)
	soon := time.Now().Add(quiet)
	_, isDir := w.watched[path]
	switch {
	case strings.HasPrefix(base, "..") && base != "..": // Kubernetes swaps ..data: every link beside it changed
		w.due[dir] = soon
	case isDir || w.isRoot(path):
		delete(w.stamps, path)
		w.due[path] = soon
	case e.Op == fsnotify.Chmod: // no other content; but what could not be read may be readable now
		if w.set.broken[path] != nil {
			delete(w.stamps, path)
			w.due[path] = soon
		}
	case manifest.IsManifest(path) && w.inside(path):
		delete(w.stamps, path) // two writes within one tick of the clock have the same time
		w.due[path] = soon
	case e.Has(fsnotify.Create) && w.inside(path) && !manifest.IsHidden(path):
		w.due[path] = time.Now() // perhaps a directory: watch it before more is put into it
	}
}

func (w *watcher) isRoot(path string) bool {
	return slices.ContainsFunc(w.roots, func(r root) bool { return r.path == path })
}

// inside reports whether a path is below a directory that the caller named, or named itself.
func (w *watcher) inside(path string) bool {
	return slices.ContainsFunc(w.roots, func(r root) bool { return r.path == path || r.dir && below(path, r.path) })
}

func below(path, dir string) bool {
	if dir == "." {
		return !filepath.IsAbs(path) && path != ".." && !strings.HasPrefix(path, "../")
	}
	return strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// lookAtDue reads what has been quiet for long enough.
func (w *watcher) lookAtDue() {
	now := time.Now()
	var paths []string
	for p, at := range w.due {
		if !at.After(now) {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	for _, p := range paths {
		delete(w.due, p)
		if err := w.look(p); err != nil {
			w.set.read(p, nil, nil, err)
			w.due[p] = now.Add(again)
		}
	}
}

// look brings one path up to date.
func (w *watcher) look(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		w.vanished(path)
		return nil
	}
	if err != nil {
		return unreadable(path, err)
	}
	if !info.IsDir() {
		if w.isRoot(path) || manifest.IsManifest(path) && w.inside(path) {
			w.read(path, info)
		}
		return nil
	}
	for _, r := range w.roots {
		if !r.dir && filepath.Dir(r.path) == path { // a named file may be a link into what was swapped
			if err := w.look(r.path); err != nil {
				return err
			}
		}
	}
	if w.inside(path) {
		return w.scan(path)
	}
	return nil
}

func unreadable(path string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return &manifest.Error{File: path, Message: fmt.Sprintf("cannot be read: %v; what it said before stays in force", err)}
}

// scan brings a directory and all below it up to date.
func (w *watcher) scan(dir string) error {
	for {
		files, dirs, err := manifest.Walk(dir)
		if err != nil {
			return unreadable(dir, err)
		}
		w.set.clear(dir)
		fresh := false
		for _, d := range dirs {
			known := w.watched[d]
			if err := w.follow(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			fresh = fresh || w.watched[d] != known
		}
		if fresh {
			continue // a file may have come between the listing and the watching
		}
		for d := range w.watched {
			if below(d, dir) && !slices.Contains(dirs, d) {
				_ = w.fsw.Remove(d) // gone with the directory, usually
				delete(w.watched, d)
			}
		}
		for p := range w.set.paths() {
			if below(p, dir) {
				if _, found := slices.BinarySearch(files, p); !found {
					w.vanished(p)
				}
			}
		}
		for _, p := range files {
			if info, err := os.Stat(p); err == nil {
				w.read(p, info)
			}
		}
		return nil
	}
}

// follow watches a directory; another one of the same name, too, when it took its place.
func (w *watcher) follow(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	inode := stampOf(info).inode
	old, known := w.watched[dir]
	if known && old == inode {
		return nil
	}
	if known {
		_ = w.fsw.Remove(dir)
		delete(w.watched, dir)
	}
	if err := w.fsw.Add(dir); err != nil {
		return fmt.Errorf("cannot watch %s: %w (see sysctl fs.inotify.max_user_watches)", dir, err)
	}
	w.watched[dir] = inode
	return nil
}

// read decodes a file that is another than when it was last read.
func (w *watcher) read(path string, info fs.FileInfo) {
	now := stampOf(info)
	if info.Size() == 0 && w.wait(path) { // truncated: whoever did it is about to write
		return
	}
	delete(w.missing, path)
	if old, ok := w.stamps[path]; ok && old == now {
		return
	}
	w.stamps[path] = now
	objects, warnings, err := manifest.DecodeFile(path)
	manifest.SetNamespace(objects, "default")
	w.set.read(path, objects, warnings, err)
	for p := range w.missing { // an object that moved here is not disputed by the file it left
		if w.set.shares(path, p) {
			w.forget(p)
		}
	}
}

// forget takes a file's objects out.
func (w *watcher) forget(path string) {
	delete(w.missing, path)
	delete(w.stamps, path)
	delete(w.due, path)
	w.set.remove(path)
}

// wait reports whether it is too early to believe that a file lost its content, and sees to it
// that it is looked at again.
func (w *watcher) wait(path string) bool {
	if len(w.set.good[path]) == 0 {
		return false
	}
	since, known := w.missing[path]
	if !known {
		since = time.Now()
		w.missing[path] = since
	}
	if time.Since(since) >= gone {
		return false
	}
	w.due[path] = since.Add(gone)
	return true
}

// vanished deals with a path that is no longer there: a file's objects go, a directory's with all below it.
// A directory that the caller named keeps what it said, because then the whole mesh would be at stake: a volume
// that is not mounted is no reason to forget it.
func (w *watcher) vanished(path string) {
	if slices.Contains(w.roots, root{path, true}) {
		w.set.read(path, nil, nil, &manifest.Error{File: path, Message: "the directory is gone; what it said before stays in force until it returns"})
		if w.watched[path] != 0 {
			_ = w.fsw.Remove(path)
		}
		delete(w.watched, path)
		w.due[path] = time.Now().Add(again)
		return
	}
	if w.set.known(path) {
		if w.wait(path) {
			return
		}
		w.forget(path)
	}
	if _, ok := w.watched[path]; ok {
		delete(w.watched, path)
		for p := range w.set.paths() {
			if below(p, path) {
				w.vanished(p)
			}
		}
	}
}

// settle adds to a Change that was not sent yet; it reports whether there is anything to send.
func (w *watcher) settle(c Change) (Change, bool) {
	apply, remove := w.set.settle()
	if len(apply)+len(remove) > 0 {
		c.merge(apply, remove)
	}
	c.Errors, c.Warnings = w.set.wrong()
	var text strings.Builder
	for _, e := range c.Errors {
		fmt.Fprintln(&text, e)
	}
	for _, m := range c.Warnings {
		fmt.Fprintln(&text, m)
	}
	news := !w.sent || len(apply)+len(remove) > 0 || text.String() != w.last
	w.last = text.String()
	return c, news
}

// merge puts a later change behind an earlier one.
func (c *Change) merge(apply []mesh.Object, remove []mesh.Key) {
	touched := map[mesh.Key]bool{}
	for _, k := range remove {
		touched[k] = true
	}
	for _, o := range apply {
		if k, err := mesh.KeyOf(o.Object); err == nil {
			touched[k] = true
		}
	}
	c.Apply = slices.DeleteFunc(c.Apply, func(o mesh.Object) bool {
		k, err := mesh.KeyOf(o.Object)
		return err == nil && touched[k]
	})
	c.Delete = slices.DeleteFunc(c.Delete, func(k mesh.Key) bool { return touched[k] })
	c.Apply = append(c.Apply, apply...)
	c.Delete = append(c.Delete, remove...)
}
