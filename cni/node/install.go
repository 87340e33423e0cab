package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/cni"
)

// Installation is the plugin on one node: where its parts go. Each call of Install makes the node what it should be and reports what the runtime will do;
// when everything is right already it only reads.
type Installation struct {
	Binary   string // path of the plugin's binary to install, in our image
	BinDir   string // the runtime's directory of plugins, usually /opt/cni/bin
	ConfDir  string // the runtime's directory of network configurations, usually /etc/cni/net.d
	StateDir string // survives a reboot; remembers what was done, so that exactly that can be undone

	// OwnList is the file name of a list of our own that must sort before the network's. It is a copy of the network's with our entry
	// at its end, follows its changes, and leaves the network's file alone. Empty: our entry is added to the network's own list.
	OwnList string

	// Plugin is our entry in the list.
	Plugin Entry

	seen binary
}

// Entry is what the plugin is told through the network configuration. See cni.Conf for the meaning of its fields.
type Entry struct {
	Backend           string
	ExcludeNamespaces []string
	AgentSocket       string
	CNIStateDir       string // cni.Conf.StateDir
}

// JSON is the entry on one line, the same bytes for the same entry.
func (e Entry) JSON() []byte {
	var o struct {
		Type              string          `json:"type"`
		Capabilities      map[string]bool `json:"capabilities"`
		Backend           string          `json:"backend,omitempty"`
		ExcludeNamespaces []string        `json:"excludeNamespaces,omitempty"`
		AgentSocket       string          `json:"agentSocket,omitempty"`
		StateDir          string          `json:"stateDir,omitempty"`
	}
	o.Type, o.Capabilities = PluginType, map[string]bool{cni.CapabilityAnnotations: true}
	o.Backend, o.ExcludeNamespaces, o.AgentSocket, o.StateDir = e.Backend, e.ExcludeNamespaces, e.AgentSocket, e.CNIStateDir
	b, err := json.Marshal(o)
	if err != nil {
		return nil // strings and booleans only
	}
	return b
}

// Report says how the chain stands after Install.
type Report struct {
	File    string   // the configuration that networks of pods are made from
	Problem string   // why pods' networks are made without the plugin, or may be; "" when the chain is complete
	Changed []string // what Install had to do: "binary", "entry", "list", "converted", "undone"
	Notes   []string // what a person should know and we leave alone

	Soon bool // somebody is writing the first configuration: what is reported lasts for a moment only
}

// Start is called once when an agent starts: an agent that runs is meant to install, whatever was uninstalled before.
func (n *Installation) Start() error {
	unlock, err := n.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.Remove(filepath.Join(n.StateDir, uninstalledMark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return removeTemporary(n.ConfDir, n.BinDir, n.StateDir)
}

// Install makes the node what it should be. An error means that it could not find out or not do it; the report is then of what is known.
func (n *Installation) Install() (r Report, err error) {
	unlock, err := n.lock()
	if err != nil {
		return r, err
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(n.StateDir, uninstalledMark)); err == nil {
		r.Problem = "weft-cni was uninstalled from this node; restart the agent to install it again"
		return r, nil
	}
	j, err := readJournal(n.StateDir)
	if err != nil {
		return r, err
	}
	// The binary first: a list must never name a plugin that is not there.
	if err := n.installBinary(j, &r); err != nil {
		r.Problem = err.Error()
		return r, err
	}
	if n.OwnList != "" {
		err = n.ownList(j, &r)
	} else {
		err = n.chain(j, &r)
	}
	return n.look(r, err)
}

// look reports what the runtime finds in the directory now, whatever was meant.
func (n *Installation) look(r Report, err error) (Report, error) {
	files, scanErr := scan(n.ConfDir)
	if err = errors.Join(err, scanErr); err != nil {
		r.Problem = err.Error()
		return r, err
	}
	c := choose(files, nil)
	r.Notes = append(r.Notes, c.notes()...)
	if c.network == nil {
		if r.Problem == "" {
			r.Problem = fmt.Sprintf("there is no valid network configuration in %s yet: waiting for the cluster's network plugin", n.ConfDir)
		}
		return r, nil
	}
	r.File = c.network.name
	if r.Problem != "" {
		return r, nil
	}
	l, err := parseList(c.network.list)
	if err != nil {
		r.Problem = fmt.Sprintf("%s: %v", r.File, err)
		return r, nil
	}
	if problem := l.entryProblem(n.Plugin.JSON()); problem != "" {
		r.Problem = r.File + " " + problem
	} else if c.first.multus() {
		if problem := c.first.delegateProblem(n.Plugin.JSON()); problem != "" {
			r.Problem = c.first.name + " " + problem
		}
	}
	return r, nil
}

func (n *Installation) conf(name string) string { return filepath.Join(n.ConfDir, name) }

// chain puts our entry at the end of the network's own list.
func (n *Installation) chain(j *journal, r *Report) error {
	files, err := scan(n.ConfDir)
	if err != nil {
		return err
	}
	// A list of our own that an earlier configuration of the agent made is not the network's.
	c := choose(files, func(name string) bool { return j.find(doOwn, name) != nil })
	if name := c.unfinished(); name != "" {
		r.Problem, r.Soon = name+" is being written", true
		return nil
	}
	if c.network == nil {
		return n.leave(j, r, doOwn)
	}
	if c.network.single() {
		err = n.convert(j, r, *c.network)
	} else if s := j.converted(c.network.name); s != nil && slices.Contains(s.Hashes, hash(c.network.text)) {
		err = n.refresh(j, r, *c.network, *s)
	} else {
		if s != nil {
			// Its owner now writes a list under this name. The old configuration that we keep is of no use any more.
			if err := n.dropSaved(j, *s); err != nil {
				return err
			}
		}
		err = n.insert(j, r, *c.network)
	}
	if _, gone := os.Lstat(n.conf(c.network.name)); err != nil && errors.Is(gone, fs.ErrNotExist) {
		r.Problem, r.Soon = c.network.name+" has just been removed", true
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.network.name, err)
	}
	return n.leave(j, r, doOwn)
}

// insert edits the network's list.
func (n *Installation) insert(j *journal, r *Report, f file) error {
	if err := j.record(step{Do: doInsert, Name: f.name}); err != nil {
		return err
	}
	l, err := parseList(f.text)
	if err != nil || l.entryProblem(n.Plugin.JSON()) == "" {
		return err
	}
	path, err := filepath.EvalSymlinks(n.conf(f.name))
	if err != nil {
		return err
	}
	if _, err = edit(path, f.text, n.withEntry); err == nil {
		r.Changed = append(r.Changed, "entry")
	}
	return err
}

// withEntry is the change that edit makes.
func (n *Installation) withEntry(text []byte) ([]byte, error) {
	l, err := parseList(text)
	if err != nil {
		return nil, err
	}
	if err := l.version(); err != nil {
		return nil, err
	}
	return l.with(n.Plugin.JSON())
}

// savedSuffix ends the name of a configuration that was moved aside. No runtime reads such a name.
const savedSuffix = ".weft-saved"

// listName is the name of the list that was made of a configuration moved aside as saved: 10-a.conf is saved as 10-a.conf.weft-saved and becomes
// 10-a.conflist. When there is such a list already, it becomes 10-a.conf-weft.conflist, saved as 10-a.conf-weft.weft-saved.
func listName(name, saved string) string {
	if saved == name+savedSuffix {
		return strings.TrimSuffix(name, filepath.Ext(name)) + ".conflist"
	}
	return strings.TrimSuffix(saved, savedSuffix) + ".conflist"
}

// converted is the step that made the list of this name.
func (j *journal) converted(list string) *step {
	for i := range j.Steps {
		if s := &j.Steps[i]; s.Do == doConvert && listName(s.Name, s.Saved) == list {
			return s
		}
	}
	return nil
}

// convert puts a list in the place of a single plugin's configuration. The list is complete before the configuration is moved aside, so that the
// runtime finds a valid one at each moment: the old one as long as it sorts first, and then the new one.
func (n *Installation) convert(j *journal, r *Report, f file) error {
	want, err := n.withEntry(f.list)
	if err != nil {
		return err
	}
	s, err := n.nameList(j, f.name)
	if err != nil {
		return err
	}
	if err := n.placeList(j, s, listName(s.Name, s.Saved), want, f.name); err != nil {
		return err
	}
	if err := os.Rename(n.conf(f.name), n.conf(s.Saved)); err != nil {
		return err
	}
	r.Changed = append(r.Changed, "converted")
	// Should its owner have written it once more before it was moved, what was moved is newer than the list.
	if err := syncDir(n.ConfDir); err != nil {
		return err
	}
	return n.refresh(j, r, file{name: listName(s.Name, s.Saved), text: want}, *j.find(doConvert, f.name))
}

// nameList finds a name for the list that nobody else uses.
func (n *Installation) nameList(j *journal, name string) (step, error) {
	old := j.find(doConvert, name)
	for _, saved := range []string{name + savedSuffix, name + "-weft" + savedSuffix} {
		have, err := hashFile(n.conf(listName(name, saved)))
		if err != nil {
			return step{}, err
		}
		if have == "" || old != nil && old.Saved == saved && slices.Contains(old.Hashes, have) {
			return step{Do: doConvert, Name: name, Saved: saved}, nil
		}
	}
	return step{}, fmt.Errorf("%s exists: remove it, so that %s can become a list", listName(name, name+"-weft"+savedSuffix), name)
}

// refresh makes the list of a converted configuration from it again, should entry or configuration have changed.
func (n *Installation) refresh(j *journal, r *Report, f file, s step) error {
	text, err := os.ReadFile(n.conf(s.Saved))
	if errors.Is(err, fs.ErrNotExist) {
		return n.insert(j, r, f) // somebody removed it: then the list is all there is
	}
	if err != nil {
		return err
	}
	l, err := fromConf(text)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Saved, err)
	}
	want, err := n.withEntry(l)
	if err != nil || bytes.Equal(want, f.text) {
		return err
	}
	r.Changed = append(r.Changed, "list")
	return n.placeList(j, s, f.name, want, s.Saved)
}

// placeList writes a list of ours, with the mode of the file that it was made from.
func (n *Installation) placeList(j *journal, s step, name string, want []byte, like string) error {
	info, err := os.Stat(n.conf(like))
	if err != nil {
		return err
	}
	if err := j.writing(s, hash(want)); err != nil {
		return err
	}
	if err := place(n.conf(name), bytes.NewReader(want), info.Mode().Perm()); err != nil {
		return err
	}
	s.Hashes = []string{hash(want)}
	return j.record(s)
}

func (n *Installation) dropSaved(j *journal, s step) error {
	if err := os.Remove(n.conf(s.Saved)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return j.forget(s)
}

// ownList keeps a copy of the network's list, with our entry, under a name that sorts first.
func (n *Installation) ownList(j *journal, r *Report) error {
	files, err := scan(n.ConfDir)
	if err != nil {
		return err
	}
	c := choose(files, func(name string) bool { return name == n.OwnList || j.find(doOwn, name) != nil })
	s := step{Do: doOwn, Name: n.OwnList}
	if name := c.unfinished(); name != "" {
		r.Problem, r.Soon = name+" is being written", true
		return nil
	}
	if c.network == nil {
		// The copy of a network that is gone must not make the node look ready.
		if old := j.find(doOwn, n.OwnList); old != nil {
			r.Changed = append(r.Changed, "undone")
			return n.undo(j, *old)
		}
		return nil
	}
	switch {
	case c.first.multus():
		r.Problem = fmt.Sprintf("%s is Multus's: a list of our own (%s) would hide it; let our entry be added to the network's list instead", c.first.name, n.OwnList)
		return nil
	case n.OwnList >= c.first.name:
		r.Problem = fmt.Sprintf("our own list %s does not sort before %s: choose a lower name", n.OwnList, c.first.name)
		return nil
	}
	want, err := n.withEntry(c.network.list)
	if err != nil {
		return fmt.Errorf("%s: %w", c.network.name, err)
	}
	s.Hashes = []string{hash(want)}
	have, err := hashFile(n.conf(n.OwnList))
	if err == nil && have == hash(want) {
		err = j.record(s)
	} else if err == nil {
		err = n.placeList(j, s, n.OwnList, want, c.network.name)
		r.Changed = append(r.Changed, "list")
	}
	if err != nil {
		return err
	}
	return n.leave(j, r, doInsert, doConvert)
}

// leave undoes what another configuration of the agent did in another way, now that this one's is in place.
func (n *Installation) leave(j *journal, r *Report, kinds ...string) error {
	for _, s := range slices.Backward(slices.Clone(j.Steps)) {
		if slices.Contains(kinds, s.Do) || s.Do == doOwn && s.Name != n.OwnList {
			if err := n.undo(j, s); err != nil {
				return err
			}
			r.Changed = append(r.Changed, "undone")
		}
	}
	return nil
}
