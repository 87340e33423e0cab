package node

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// binary remembers what was compared last, so that an unchanged file is not read again at each look.
type binary struct {
	hash    string // of the source
	size    int64
	changed time.Time
	inode   any
}

// installBinary puts the plugin's binary where the runtime looks for it, whole or not at all. A plugin that is running keeps its old file.
func (n *Installation) installBinary(j *journal, r *Report) error {
	path := filepath.Join(n.BinDir, PluginType)
	if info, err := os.Stat(path); err == nil && n.seen.same(info) {
		return nil
	}
	if n.seen.hash == "" {
		want, err := hashFile(n.Binary)
		if err == nil && want == "" {
			err = fs.ErrNotExist
		}
		if err != nil {
			return fmt.Errorf("the plugin's binary to install, %s: %w", n.Binary, err)
		}
		n.seen.hash = want
	}
	have, err := hashFile(path)
	if err != nil {
		return err
	}
	s := step{Do: doBinary, Name: PluginType, Hashes: []string{n.seen.hash}}
	info, err := os.Stat(path)
	if have != n.seen.hash || err != nil || info.Mode().Perm() != 0o755 {
		if err := n.copyBinary(j, s, path); err != nil {
			return err
		}
		r.Changed = append(r.Changed, "binary")
	}
	if err := j.record(s); err != nil {
		return err
	}
	if info, err = os.Stat(path); err == nil {
		n.seen = binary{n.seen.hash, info.Size(), info.ModTime(), inode(info)}
	}
	return err
}

func (n *Installation) copyBinary(j *journal, s step, path string) error {
	if err := os.MkdirAll(n.BinDir, 0o755); err != nil {
		return fmt.Errorf("the runtime's directory of plugins: %w", err)
	}
	if err := j.writing(s, n.seen.hash); err != nil {
		return err
	}
	f, err := os.Open(n.Binary)
	if err != nil {
		return err
	}
	defer f.Close()
	return place(path, f, 0o755)
}

func (b binary) same(info fs.FileInfo) bool {
	return b.inode != nil && b.inode == inode(info) && b.size == info.Size() && b.changed.Equal(info.ModTime()) && info.Mode().Perm() == 0o755
}
