package event

// What a consumer of millions of records reads of each: the forms that we write
// ourselves, without the generality of packages time and uuid. Whatever is not
// exactly in such a form is left to them.

// utcTime reads 2006-01-02T15:04:05Z with up to six digits of a second. ok is
// false for anything else, which may still be a time.
func utcTime(s string) (us Time, ok bool) {
	if len(s) < 20 || len(s) > 27 || s[4] != '-' || s[7] != '-' || s[10] != 'T' || s[13] != ':' || s[16] != ':' || s[len(s)-1] != 'Z' {
		return 0, false
	}
	bad := 0
	two := func(i int) int {
		a, b := int(s[i])-'0', int(s[i+1])-'0'
		if uint(a) > 9 || uint(b) > 9 {
			bad++
		}
		return a*10 + b
	}
	year, month, day := two(0)*100+two(2), two(5), two(8)
	hour, minute, second := two(11), two(14), two(17)
	if bad > 0 || year < 1 || month < 1 || month > 12 || day < 1 || day > 28 && day > daysOf(year, month) || hour > 23 || minute > 59 || second > 59 {
		return 0, false
	}
	fraction, unit := 0, 1_000_000
	if len(s) > 20 {
		if s[19] != '.' || len(s) == 21 {
			return 0, false
		}
		for _, c := range []byte(s[20 : len(s)-1]) {
			if c < '0' || c > '9' {
				return 0, false
			}
			unit /= 10
			fraction += int(c-'0') * unit
		}
	}
	seconds := ((int64(daysSince1970(year, month, day))*24+int64(hour))*60+int64(minute))*60 + int64(second)
	return Time(seconds*1_000_000 + int64(fraction)), true
}

func daysOf(year, month int) int {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

// daysSince1970 counts in years that begin in March, so that the leap day is the
// last of its year.
func daysSince1970(year, month, day int) int {
	if month < 3 {
		year, month = year-1, month+12
	}
	return 365*year + year/4 - year/100 + year/400 + (153*(month-3)+2)/5 + day - 719_469
}

// hexID reads a UUID of 36 characters in lower case.
func hexID(s string) (id ID, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return id, false
	}
	bad := byte(0)
	nibble := func(c byte) byte {
		switch {
		case c >= '0' && c <= '9':
			return c - '0'
		case c >= 'a' && c <= 'f':
			return c - 'a' + 10
		}
		bad = 1
		return 0
	}
	for i, at := range [16]byte{0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34} {
		id[i] = nibble(s[at])<<4 | nibble(s[at+1])
	}
	return id, bad == 0
}
