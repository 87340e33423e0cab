package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
)

// PluginType is the "type" of our entry, and the name of the plugin's binary.
const PluginType = "weft-cni"

// oldestChain is the first version of the CNI spec whose result our plugin can take over.
const oldestChain = "0.3.0"

// list is a network configuration list, as bytes with known places in them. Editing keeps every byte that is not ours: a network plugin's operator
// finds their file as they wrote it, key order and spaces included.
type list struct {
	text    []byte
	plugins []element
	open    int // place after the "[" of plugins
	end     int // place of its "]"
}

// element is one plugin of a list.
type element struct {
	start, end int // in list.text
	kind       string
}

// parseList accepts what a container runtime accepts, which libcni decides, as long as the plugins are in the file itself.
func parseList(text []byte) (list, error) {
	if _, err := libcni.NetworkConfFromBytes(text); err != nil {
		return list{}, err
	}
	l := list{text: text, open: -1}
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil {
		return list{}, err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return list{}, err
		}
		if key != "plugins" {
			if err := d.Decode(new(json.RawMessage)); err != nil {
				return list{}, err
			}
			continue
		}
		if l.open >= 0 {
			return list{}, errors.New(`it has the key "plugins" twice`)
		}
		if err := l.elements(d); err != nil {
			return list{}, err
		}
	}
	if l.open < 0 {
		return list{}, errors.New(`it has no "plugins" of its own; plugins in a directory beside it are not supported`)
	}
	return l, nil
}

func (l *list) elements(d *json.Decoder) error {
	if _, err := d.Token(); err != nil {
		return err
	}
	l.open = int(d.InputOffset())
	for d.More() {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return err
		}
		var p struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(raw, &p); err != nil {
			return err
		}
		end := int(d.InputOffset())
		l.plugins = append(l.plugins, element{end - len(raw), end, p.Type})
	}
	if _, err := d.Token(); err != nil {
		return err
	}
	l.end = int(d.InputOffset()) - 1
	return nil
}

// version is the list's cniVersion and an error when nothing can be chained in it.
func (l list) version() error {
	c, err := libcni.NetworkConfFromBytes(l.text)
	if err != nil {
		return err
	}
	if ok, err := version.GreaterThanOrEqualTo(c.CNIVersion, oldestChain); err != nil || !ok {
		return fmt.Errorf("field cniVersion is %q, but plugins can be chained from %s on: let the network plugin that owns it write a newer version", c.CNIVersion, oldestChain)
	}
	return nil
}

func (l list) ours() (count int) {
	for _, p := range l.plugins {
		if p.kind == PluginType {
			count++
		}
	}
	return count
}

// entryProblem says why the list does not do what it should; "" when our entry is there once, last, and with the wanted content.
func (l list) entryProblem(entry []byte) string {
	last := l.plugins[len(l.plugins)-1]
	switch n := l.ours(); {
	case n == 0:
		return "has no weft-cni entry"
	case n > 1:
		return "has more than one weft-cni entry"
	case last.kind != PluginType:
		return fmt.Sprintf("has plugin %s after weft-cni", last.kind)
	case !sameJSON(l.text[last.start:last.end], entry):
		return "has a weft-cni entry with other content"
	}
	return ""
}

// with gives the list with our entry once and last. A list that is right already comes back as it is.
func (l list) with(entry []byte) ([]byte, error) {
	if l.entryProblem(entry) == "" {
		return l.text, nil
	}
	text, err := l.without()
	if err != nil {
		return nil, err
	}
	if l, err = parseList(text); err != nil {
		return nil, err
	}
	last := l.plugins[len(l.plugins)-1]
	insert := append([]byte(","), l.gap()...)
	insert = append(insert, entry...)
	out := bytes.Join([][]byte{l.text[:last.end], insert, l.text[last.end:]}, nil)
	if check, err := parseList(out); err != nil || check.entryProblem(entry) != "" {
		return nil, errors.Join(fmt.Errorf("adding the weft-cni entry did not work: %.200q", out), err)
	}
	return out, nil
}

// gap is the space that the owner of the file puts before a plugin.
func (l list) gap() []byte {
	last := l.plugins[len(l.plugins)-1]
	from := l.open
	if n := len(l.plugins); n > 1 {
		from = l.plugins[n-2].end
	}
	gap := l.text[from:last.start]
	return gap[bytes.IndexByte(gap, ',')+1:]
}

// without gives the list with no entry of ours. It undoes with to the byte.
func (l list) without() ([]byte, error) {
	if l.ours() == len(l.plugins) {
		return nil, errors.New("it has no plugin beside weft-cni")
	}
	out := bytes.Clone(l.text)
	for i := len(l.plugins) - 1; i >= 0; i-- {
		p := l.plugins[i]
		if p.kind != PluginType {
			continue
		}
		// The comma goes along with the space around it: before the entry, or after it when the entry is the first.
		from, to := p.start, p.end
		if kept := l.keptBefore(i); kept >= 0 {
			from = l.plugins[kept].end
			if kept != i-1 {
				from = l.plugins[i-1].end
			}
		} else {
			to = l.plugins[i+1].start
		}
		out = append(out[:from:from], out[to:]...)
	}
	return out, nil
}

// keptBefore is the nearest plugin before i that is not ours, or -1.
func (l list) keptBefore(i int) int {
	for i--; i >= 0; i-- {
		if l.plugins[i].kind != PluginType {
			return i
		}
	}
	return -1
}

// fromConf makes a list of the configuration of a single plugin, which a .conf or .json file holds. The plugin's own bytes stay
// as they are; name and cniVersion are repeated for the list, as libcni does it in memory (ConfListFromConf).
func fromConf(text []byte) ([]byte, error) {
	if _, err := libcni.NetworkPluginConfFromBytes(text); err != nil {
		return nil, err
	}
	var c struct {
		Name       json.RawMessage `json:"name"`
		CNIVersion json.RawMessage `json:"cniVersion"`
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteString("{\n")
	for _, f := range []struct {
		key   string
		value json.RawMessage
	}{{"cniVersion", c.CNIVersion}, {"name", c.Name}} {
		if f.value != nil {
			fmt.Fprintf(&out, "  %q: %s,\n", f.key, f.value)
		}
	}
	fmt.Fprintf(&out, "  \"plugins\": [\n    %s\n  ]\n}\n", strings.TrimSpace(string(text)))
	if _, err := parseList(out.Bytes()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}
