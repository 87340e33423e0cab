package files

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/mesh/manifest"
)

// set is the files and what of them is in force.
type set struct {
	files map[string]*file
}

// file is one file: what is in force of it, and what it says now.
type file struct {
	good     content // in force
	next     *content
	broken   error // why next is not in force; also when it cannot be read
	warnings []manifest.Warning
}

type content map[mesh.Key]mesh.Object

// contentOf indexes decoded objects.
func contentOf(objects []mesh.Object) (content, error) {
	c := make(content, len(objects))
	for _, o := range objects {
		key, err := mesh.KeyOf(o.Object)
		if err != nil {
			return nil, err
		}
		c[key] = o
	}
	return c, nil
}

// read notes what a file says now. A file that is gone says nothing.
func (s *set) read(path string, objects []mesh.Object, warnings []manifest.Warning, err error) {
	f := s.files[path]
	if f == nil {
		f = &file{}
		s.files[path] = f
	}
	f.next, f.broken = nil, err
	if err != nil {
		return
	}
	f.warnings = warnings
	c, err := contentOf(objects)
	if err != nil {
		f.broken = &manifest.Error{File: path, Message: err.Error()}
		return
	}
	f.next = &c
}

func (s *set) remove(path string) {
	if f := s.files[path]; f != nil {
		f.next, f.broken, f.warnings = &content{}, nil, nil
	}
}

// shares reports whether what one file says now contains an object that is in force from another.
func (s *set) shares(path, other string) bool {
	f, o := s.files[path], s.files[other]
	if f == nil || f.next == nil || o == nil || f == o {
		return false
	}
	for key := range *f.next {
		if _, ok := o.good[key]; ok {
			return true
		}
	}
	return false
}

// settle puts the new contents in force, all but those that have a mistake or that claim an object which
// another file has: one such file keeps its old content as a whole. It returns what changed.
func (s *set) settle() (apply []mesh.Object, remove []mesh.Key) {
	paths := slices.Sorted(maps.Keys(s.files))
	accepted := map[string]bool{}
	for _, p := range paths {
		accepted[p] = s.files[p].next != nil
	}
	effective := func(p string) content {
		if accepted[p] {
			return *s.files[p].next
		}
		return s.files[p].good
	}
	for again := true; again; { // each round turns a file down, so this ends
		again = false
		owner := map[mesh.Key]string{}
		for _, p := range paths {
			for _, key := range sortedKeys(effective(p)) {
				first, taken := owner[key]
				if !taken {
					owner[key] = p
					continue
				}
				loser, winner := p, first
				if _, had := s.files[p].good[key]; accepted[first] && (had || !accepted[p]) {
					loser, winner = first, p
				}
				if !accepted[loser] {
					continue // two contents in force never share an object
				}
				accepted[loser] = false
				s.files[loser].broken = duplicate(key, loser, (*s.files[loser].next)[key], effective(winner)[key])
				again = true
				break
			}
			if again {
				break
			}
		}
	}
	before, after := content{}, content{}
	for _, p := range paths {
		f := s.files[p]
		if !accepted[p] {
			continue
		}
		maps.Copy(before, f.good)
		maps.Copy(after, *f.next)
		f.good, f.next, f.broken = *f.next, nil, nil
		if len(f.good) == 0 && len(f.warnings) == 0 {
			delete(s.files, p)
		}
	}
	for key, o := range after {
		if old, had := before[key]; !had || old.File != o.File || old.Line != o.Line || !reflect.DeepEqual(old.Object, o.Object) {
			apply = append(apply, o)
		}
	}
	for key := range before {
		if _, still := after[key]; !still {
			remove = append(remove, key)
		}
	}
	slices.SortFunc(apply, func(a, b mesh.Object) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	slices.SortFunc(remove, compareKeys)
	return apply, remove
}

func duplicate(key mesh.Key, path string, again, first mesh.Object) error {
	return &manifest.Error{File: path, Line: again.Line, Object: key,
		Message: fmt.Sprintf("this object is written twice; the first is in %s:%d: remove one of them", first.File, first.Line)}
}

func sortedKeys(c content) []mesh.Key {
	return slices.SortedFunc(maps.Keys(c), compareKeys)
}

func compareKeys(a, b mesh.Key) int {
	return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// errors lists the mistakes that stand now, sorted by file.
func (s *set) errors() []error {
	var out []error
	for _, p := range slices.Sorted(maps.Keys(s.files)) {
		if err := s.files[p].broken; err != nil {
			out = append(out, err)
		}
	}
	return out
}

func (s *set) warnings() []manifest.Warning {
	var out []manifest.Warning
	for _, p := range slices.Sorted(maps.Keys(s.files)) {
		out = append(out, s.files[p].warnings...)
	}
	return out
}
