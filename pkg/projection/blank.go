package projection

// Blank returns a row that exists and that no event has touched: every field as
// it is at first.
func (p *Plan) Blank() *Row {
	r := p.NewRow()
	r.create()
	return r
}
