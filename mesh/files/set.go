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

// set is the files and what of them is in force. Work is done only for files that changed: there may be
// thousands of others.
type set struct {
	good  map[string]content  // what is in force, by file
	owner map[mesh.Key]string // the file each object in force is from
	next  map[string]content  // what files say now and what is not in force yet

	broken   map[string]error // why a file's present content is not in force
	warnings map[string][]manifest.Warning
}

type content map[mesh.Key]mesh.Object

func newSet() set {
	return set{
		good: map[string]content{}, owner: map[mesh.Key]string{}, next: map[string]content{},
		broken: map[string]error{}, warnings: map[string][]manifest.Warning{},
	}
}

// read notes what a file says now.
func (s *set) read(path string, objects []mesh.Object, warnings []manifest.Warning, err error) {
	c := make(content, len(objects))
	for _, o := range objects {
		key, keyErr := mesh.KeyOf(o.Object)
		if keyErr != nil && err == nil {
			err = &manifest.Error{File: path, Line: o.Line, Message: keyErr.Error()}
		}
		c[key] = o
	}
	delete(s.next, path)
	if err != nil {
		s.broken[path] = err
		return
	}
	delete(s.broken, path)
	delete(s.warnings, path)
	if len(warnings) > 0 {
		s.warnings[path] = warnings
	}
	s.next[path] = c
}

// remove notes that a file is gone: it says nothing.
func (s *set) remove(path string) { s.read(path, nil, nil, nil) }

// clear forgets what was wrong with a path that has no content of its own: a directory.
func (s *set) clear(path string) { delete(s.broken, path) }

// known reports whether a file says anything, be it right or wrong.
func (s *set) known(path string) bool {
	_, good := s.good[path]
	_, next := s.next[path]
	_, broken := s.broken[path]
	return good || next || broken
}

// paths lists the known files.
func (s *set) paths() map[string]bool {
	out := make(map[string]bool, len(s.good))
	for p := range s.good {
		out[p] = true
	}
	for p := range s.next {
		out[p] = true
	}
	for p := range s.broken {
		out[p] = true
	}
	return out
}

// shares reports whether what one file says now contains an object that is in force from another.
func (s *set) shares(path, other string) bool {
	for key := range s.next[path] {
		if s.owner[key] == other {
			return path != other
		}
	}
	return false
}

// settle puts the new contents in force, all but those that claim an object which another file has:
// such a file keeps its old content as a whole, and is tried again each time. It returns what changed.
func (s *set) settle() (apply []mesh.Object, remove []mesh.Key) {
	accepted := map[string]bool{}
	for p := range s.next {
		accepted[p] = true
		delete(s.broken, p)
	}
	for s.turnDownOne(accepted) { // each round turns a file down, so this ends
	}
	before, after := content{}, content{}
	for p, ok := range accepted {
		if !ok {
			continue
		}
		for key, o := range s.good[p] {
			before[key] = o
			if s.owner[key] == p {
				delete(s.owner, key)
			}
		}
	}
	for p, ok := range accepted {
		if !ok {
			continue
		}
		for key, o := range s.next[p] {
			after[key] = o
			s.owner[key] = p
		}
		if s.good[p] = s.next[p]; len(s.good[p]) == 0 {
			delete(s.good, p)
		}
		delete(s.next, p)
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

// turnDownOne finds two files that would both have an object, and turns one down: the one that does not
// have it yet, or the later one by name.
func (s *set) turnDownOne(accepted map[string]bool) bool {
	claims := map[mesh.Key]string{}
	for _, p := range slices.Sorted(maps.Keys(accepted)) {
		if !accepted[p] {
			continue
		}
		for _, key := range slices.SortedFunc(maps.Keys(s.next[p]), compareKeys) {
			other, claimed := claims[key]
			if q, owned := s.owner[key]; owned && q != p {
				if _, keeps := s.next[q][key]; !accepted[q] || keeps {
					other, claimed = q, true
				}
			}
			if !claimed {
				claims[key] = p
				continue
			}
			loser, winner := p, other
			if s.owner[key] == p && accepted[other] {
				loser, winner = other, p
			}
			accepted[loser] = false
			s.broken[loser] = duplicate(key, s.next[loser][key], s.at(winner, key, accepted))
			return true
		}
	}
	return false
}

// at is an object as a file has it.
func (s *set) at(path string, key mesh.Key, accepted map[string]bool) mesh.Object {
	if accepted[path] {
		return s.next[path][key]
	}
	return s.good[path][key]
}

func duplicate(key mesh.Key, again, first mesh.Object) error {
	return &manifest.Error{File: again.File, Line: again.Line, Object: key,
		Message: fmt.Sprintf("this object is written twice; the first is in %s:%d: remove one of them", first.File, first.Line)}
}

func compareKeys(a, b mesh.Key) int {
	return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// wrong lists what is wrong now, sorted by file.
func (s *set) wrong() (errs []error, warnings []manifest.Warning) {
	for _, p := range slices.Sorted(maps.Keys(s.broken)) {
		errs = append(errs, s.broken[p])
	}
	for _, p := range slices.Sorted(maps.Keys(s.warnings)) {
		warnings = append(warnings, s.warnings[p]...)
	}
	return errs, warnings
}
