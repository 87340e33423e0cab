package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// file is one network configuration in the directory, as the container runtime reads it.
type file struct {
	name string
	text []byte
	list []byte // text, or the list that a single plugin's configuration stands for
	err  error  // why a runtime cannot use it
	age  time.Duration

	// after are plugins from files in a directory called like the network, which a runtime that reads CNI 1.1 puts after the list's own.
	after []string
}

// single says that the file holds one plugin and not a list. Runtimes go by the name's ending, not by the content.
func (f file) single() bool { return filepath.Ext(f.name) != ".conflist" }

// scan reads the directory in the order in which kubelet's container runtimes do (containerd's go-cni and CRI-O's ocicni: files ending in
// .conf, .conflist or .json, by name). The first valid one is the cluster's network.
func scan(dir string) ([]file, error) {
	paths, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("read the directory of network configurations: %w", err)
	}
	slices.Sort(paths)
	var out []file
	for _, path := range paths {
		f := file{name: filepath.Base(path)}
		if f.text, err = os.ReadFile(path); errors.Is(err, fs.ErrNotExist) {
			continue // gone since the directory was read, or a symbolic link to nowhere
		} else if err != nil {
			f.err = err
		} else {
			f.parse(dir)
		}
		if info, err := os.Stat(path); err == nil {
			f.age = time.Since(info.ModTime())
		}
		out = append(out, f)
	}
	return out, nil
}

func (f *file) parse(dir string) {
	if f.list, f.err = f.text, nil; f.single() {
		f.list, f.err = fromConf(f.text)
		return
	}
	var l *libcni.NetworkConfigList
	if l, f.err = libcni.NetworkConfFromBytes(f.text); f.err != nil || l.LoadOnlyInlinedPlugins {
		return
	}
	beside, err := libcni.NetworkPluginConfsFromFiles(dir, l.Name)
	if f.err = err; err == nil && len(beside)+len(l.Plugins) == 0 {
		f.err = errors.New("it has no plugins")
	}
	for _, p := range beside {
		f.after = append(f.after, p.Network.Type)
	}
}

// plugins are the types of the plugins that the file itself names.
func (f file) plugins() []string {
	l, err := parseList(f.list)
	if err != nil {
		return nil
	}
	var out []string
	for _, p := range l.plugins {
		out = append(out, p.kind)
	}
	return out
}

// multus says that the file's plugin only hands on to another network's plugins. Nothing is chained behind it: Multus
// itself rewrites this file, and the redirection belongs to the pod's first network.
func (f file) multus() bool {
	kinds := f.plugins()
	return len(kinds) > 0 && (kinds[0] == "multus" || kinds[0] == "multus-shim" || kinds[0] == "multus-cni")
}

// delegateProblem looks into the copy of the default network that Multus keeps in its own file, if it keeps one there: "" when it has our entry
// last, or when the file does not say (multus-shim, clusterNetwork by name).
func (f file) delegateProblem(entry []byte) string {
	l, err := parseList(f.list)
	if err != nil {
		return err.Error()
	}
	var m struct {
		Delegates []json.RawMessage `json:"delegates"`
	}
	p := l.plugins[0]
	if err := json.Unmarshal(l.text[p.start:p.end], &m); err != nil || len(m.Delegates) == 0 {
		return ""
	}
	d, err := parseList(m.Delegates[0])
	if err != nil {
		return "delegates to a network that is not a list, so nothing is chained behind it: let Multus generate its file from the list (--multus-conf-file=auto)"
	}
	if problem := d.entryProblem(entry); problem != "" {
		return "delegates to a copy of the network that " + problem + ": Multus must generate its file again (with --multus-conf-file=auto restart its pod of this node)"
	}
	return ""
}

// chosen is what the runtime would do with a directory.
type chosen struct {
	first   *file  // what the runtime uses; nil without any
	network *file  // the network of pods: first, or what Multus delegates to
	skipped []file // invalid files that sort before first
}

// choose finds the configuration that counts, passing over files that ignore names.
func choose(files []file, ignore func(name string) bool) (c chosen) {
	for i := range files {
		f := &files[i]
		switch {
		case ignore != nil && ignore(f.name):
		case f.err != nil:
			if c.first == nil {
				c.skipped = append(c.skipped, *f)
			}
		case c.first == nil:
			if c.first = f; !f.multus() {
				c.network = f
				return c
			}
		case !f.multus():
			c.network = f
			return c
		}
	}
	return c
}

// unfinished names a file that is not valid and was changed just now: somebody is writing it, and it may become the network. Until then no other is touched.
func (c chosen) unfinished() string {
	const fresh = 300 * time.Millisecond
	for _, f := range c.skipped {
		if f.age >= 0 && f.age < fresh {
			return f.name
		}
	}
	return ""
}

// notes are for people: nothing that we could put right.
func (c chosen) notes() (out []string) {
	for _, f := range c.skipped {
		out = append(out, fmt.Sprintf("%s is not valid and sorts first (CRI-O passes over it, containerd stops at it): %s", f.name, strings.ReplaceAll(f.err.Error(), "\n", " ")))
	}
	if c.network != nil && len(c.network.after) > 0 {
		out = append(out, fmt.Sprintf("%s: the directory called like the network adds %s after weft-cni", c.network.name, strings.Join(c.network.after, ", ")))
	}
	return out
}
