package program

import (
	"slices"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// ScopeKind is how a policy's head bounds its principals, actions or resources.
type ScopeKind uint8

// The kinds of scopes.
const (
	ScopeAll   ScopeKind = iota // any
	ScopeEq                     // == Entity
	ScopeIn                     // in Entity
	ScopeInSet                  // in [Entities]; of actions alone
	ScopeIs                     // is Type
	ScopeIsIn                   // is Type in Entity
)

// Scope is one part of a policy's head.
type Scope struct {
	Kind     ScopeKind
	Type     types.EntityType
	Entity   types.EntityUID
	Entities []types.EntityUID
}

func scopeOf(n ast.IsScopeNode) Scope {
	switch s := n.(type) {
	case ast.ScopeTypeEq:
		return Scope{Kind: ScopeEq, Entity: s.Entity}
	case ast.ScopeTypeIn:
		return Scope{Kind: ScopeIn, Entity: s.Entity}
	case ast.ScopeTypeInSet:
		return Scope{Kind: ScopeInSet, Entities: s.Entities}
	case ast.ScopeTypeIs:
		return Scope{Kind: ScopeIs, Type: s.Type}
	case ast.ScopeTypeIsIn:
		return Scope{Kind: ScopeIsIn, Type: s.Type, Entity: s.Entity}
	}
	return Scope{}
}

func (s Scope) key() key {
	if s.Kind == ScopeIs {
		return key{kind: ScopeIs, typ: s.Type}
	}
	return key{kind: s.Kind, typ: s.Entity.Type, id: s.Entity.ID}
}

// Includes reports whether an entity with the ancestors given is in the scope.
func (s Scope) Includes(uid types.EntityUID, ancestors []types.EntityUID) bool {
	in := func(e types.EntityUID) bool { return e == uid || slices.Contains(ancestors, e) }
	switch s.Kind {
	case ScopeAll:
		return true
	case ScopeEq:
		return s.Entity == uid
	case ScopeIn:
		return in(s.Entity)
	case ScopeInSet:
		return slices.ContainsFunc(s.Entities, in)
	case ScopeIs:
		return s.Type == uid.Type
	case ScopeIsIn:
		return s.Type == uid.Type && in(s.Entity)
	}
	return false
}
