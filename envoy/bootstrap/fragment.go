package bootstrap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// fragment is the JSON of a message with holes. It is made once from a real protobuf message in which marker values stand
// where a pod's values belong; filling it in is copying. That keeps both promises: the configuration is built from Envoy's
// own types, and one injection costs microseconds instead of a walk over hundreds of messages.
type fragment struct {
	text  []string // len(holes)+1
	holes []int    // which of the markers
}

// compile finds the markers (JSON values, as they appear in the text) in the message's JSON.
// Each must occur at least once.
func compile(m proto.Message, markers ...string) (fragment, error) {
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return fragment{}, err
		}
	}
	text, err := compact(m)
	if err != nil {
		return fragment{}, err
	}
	var f fragment
	seen := make([]bool, len(markers))
	for {
		at, which := -1, 0
		for i, marker := range markers {
			if p := strings.Index(text, marker); p >= 0 && (at < 0 || p < at) {
				at, which = p, i
			}
		}
		if at < 0 {
			break
		}
		f.text = append(f.text, text[:at])
		f.holes = append(f.holes, which)
		seen[which] = true
		text = text[at+len(markers[which]):]
	}
	f.text = append(f.text, text)
	for i, s := range seen {
		if !s {
			return fragment{}, fmt.Errorf("no place for %s in %T", markers[i], m)
		}
	}
	return f, nil
}

// fill appends the fragment with values[i] for marker i.
func (f fragment) fill(to []byte, values ...[]byte) []byte {
	for i, hole := range f.holes {
		to = append(to, f.text[i]...)
		to = append(to, values[hole]...)
	}
	return append(to, f.text[len(f.holes)]...)
}

// compact is protojson without its deliberately unstable white space, so that the same input always gives the same bytes.
func compact(m proto.Message) (string, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return "", err
	}
	return out.String(), nil
}

// quote appends s as a JSON string that kubelet's $(VAR) expansion gives back unchanged: "$$" is its escape for "$".
func quote(to []byte, s string) []byte {
	to = append(to, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '$':
			to = append(to, "$$"...)
		case c == '"' || c == '\\':
			to = append(to, '\\', c)
		case c < ' ' || c >= 0x7f:
			// Rare enough to leave to the library; it also mends invalid UTF-8.
			b, _ := json.Marshal(s[i:])
			to = append(to, strings.ReplaceAll(string(b[1:len(b)-1]), "$", "$$")...)
			return append(to, '"')
		default:
			to = append(to, c)
		}
	}
	return append(to, '"')
}
