package watch

import (
	tea "charm.land/bubbletea/v2"
)

// ticked is the message of a tick.
type ticked struct{}

// model is the Watch as bubbletea's model.
type model struct{ *Watch }

func (m model) Init() tea.Cmd { return nil }

func (m model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	m.state.Lock()
	defer m.state.Unlock()
	switch msg := msg.(type) {
	case ticked:
		m.ticked.Store(false)
	case tea.WindowSizeMsg:
		m.screen.width, m.screen.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		switch key := msg.String(); key {
		case "ctrl+l":
			return m, tea.ClearScreen
		default:
			m.keys.press(key, m.state.rows(&m.keys))
		}
		select {
		case m.pressed <- struct{}{}:
		default:
		}
		if m.keys.quit {
			m.keys.quit = false
			return m, func() tea.Msg { m.o.Interrupt(); return nil }
		}
	}
	return m, nil
}

func (m model) View() tea.View {
	m.state.Lock()
	defer m.state.Unlock()
	v := tea.NewView(m.state.view(&m.keys, m.screen))
	v.AltScreen = true
	return v
}
