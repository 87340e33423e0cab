package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// step is one thing that was done to the node, written down before it is done. Undoing a step that was never carried out, or that somebody else has undone, changes
// nothing. Files are named without their directory, because who uninstalls may see the node's directories elsewhere.
type step struct {
	Do   string `json:"do"`
	Name string `json:"name"` // of the file, in the directory that goes with Do

	// Hashes are of the contents that we gave to a file of ours: the present one, and the next while it is being written. A file with other
	// content has become somebody else's.
	Hashes []string `json:"hashes,omitempty"`

	// Saved is the name under which a converted configuration was moved aside.
	Saved string `json:"saved,omitempty"`
}

// What a step does.
const (
	doBinary  = "binary"  // the plugin's binary in the directory of binaries
	doInsert  = "insert"  // our entry in somebody's list
	doOwn     = "own"     // a list of our own, beside the network's
	doConvert = "convert" // a list made of a single plugin's configuration, which was moved aside
)

// journal is the list of steps, kept in the state directory.
type journal struct {
	path  string
	Steps []step `json:"steps"`
}

func readJournal(dir string) (*journal, error) {
	j := &journal{path: filepath.Join(dir, "undo.json")}
	b, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err == nil {
		err = json.Unmarshal(b, j)
	}
	if err != nil {
		return nil, fmt.Errorf("read what was done to this node: %s: %w", j.path, err)
	}
	return j, nil
}

func (j *journal) find(do, name string) *step {
	for i := range j.Steps {
		if s := &j.Steps[i]; s.Do == do && s.Name == name {
			return s
		}
	}
	return nil
}

// record writes the step down, in place of an earlier one of the same kind and file.
func (j *journal) record(s step) error {
	if old := j.find(s.Do, s.Name); old != nil {
		if old.Saved == s.Saved && slices.Equal(old.Hashes, s.Hashes) {
			return nil
		}
		*old = s
	} else {
		j.Steps = append(j.Steps, s)
	}
	return placeJSON(j.path, j)
}

// writing records that the file is about to get content with this hash; until it has, it may as well have the content of before.
func (j *journal) writing(s step, next string) error {
	s.Hashes = []string{next}
	if old := j.find(s.Do, s.Name); old != nil {
		for _, h := range old.Hashes {
			if h != next {
				s.Hashes = append(s.Hashes, h)
			}
		}
	}
	const most = 4 // each write that a crash cut short leaves one
	s.Hashes = s.Hashes[:min(len(s.Hashes), most)]
	return j.record(s)
}

func (j *journal) forget(s step) error {
	j.Steps = slices.DeleteFunc(j.Steps, func(o step) bool { return o.Do == s.Do && o.Name == s.Name })
	if len(j.Steps) > 0 {
		return placeJSON(j.path, j)
	}
	if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// undo takes one step back, if nobody has done so already. Nothing that became somebody else's is removed.
func (n *Installation) undo(j *journal, s step) error {
	var err error
	switch s.Do {
	case doBinary:
		err = removeOurs(filepath.Join(n.BinDir, s.Name), s.Hashes)
	case doInsert:
		err = n.strip(s.Name)
	case doOwn:
		if err = removeOurs(n.conf(s.Name), s.Hashes); err == nil {
			err = n.strip(s.Name)
		}
	case doConvert:
		// First the old configuration comes back, then the list goes: at each moment there is one.
		if err = moveBack(n.conf(s.Saved), n.conf(s.Name)); err == nil {
			if err = removeOurs(n.conf(listName(s.Name, s.Saved)), s.Hashes); err == nil {
				err = n.strip(listName(s.Name, s.Saved))
			}
		}
	default:
		err = fmt.Errorf("step %q is not known: it was written by a newer version", s.Do)
	}
	if err != nil {
		return fmt.Errorf("undo %s of %s: %w", s.Do, s.Name, err)
	}
	return j.forget(s)
}

// strip removes our entry from a list, if both are there.
func (n *Installation) strip(name string) error {
	path, err := filepath.EvalSymlinks(n.conf(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if l, err := parseList(text); err != nil || l.ours() == 0 {
		return nil // not a list any more, or not one of ours: whoever wrote it meant it so
	}
	_, err = edit(path, text, func(text []byte) ([]byte, error) {
		l, err := parseList(text)
		if err != nil {
			return nil, err
		}
		return l.without()
	})
	return err
}

// removeOurs removes a file whose content is one that we gave it.
func removeOurs(path string, hashes []string) error {
	have, err := hashFile(path)
	if err != nil || !slices.Contains(hashes, have) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// moveBack renames without ever replacing what came to be under the old name.
func moveBack(saved, path string) error {
	err := unix.Renameat2(unix.AT_FDCWD, saved, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		err = os.Remove(saved) // its owner wrote a newer one
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// uninstalledMark tells a running agent that the steps were taken back on purpose.
const uninstalledMark = "uninstalled"

// Uninstall takes back exactly what was done to the node, the configuration before the binary that it names, and keeps a running agent
// from doing it again until it is started anew. Steps that fail stay written down, and the others are taken back all the same.
func (n *Installation) Uninstall() error {
	unlock, err := n.lock()
	if err != nil {
		return err
	}
	defer unlock()
	j, err := readJournal(n.StateDir)
	if err != nil {
		return err
	}
	if err := placeJSON(filepath.Join(n.StateDir, uninstalledMark), true); err != nil {
		return err
	}
	errs := []error{removeTemporary(n.ConfDir, n.BinDir)}
	for _, binaries := range []bool{false, true} {
		for _, s := range slices.Backward(slices.Clone(j.Steps)) {
			if (s.Do == doBinary) == binaries {
				errs = append(errs, n.undo(j, s))
			}
		}
	}
	return errors.Join(errs...)
}

// lock keeps the agent and an uninstall on the same node apart.
func (n *Installation) lock() (unlock func(), err error) {
	if err := os.MkdirAll(n.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(n.StateDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}
